// Takes receiver's events with Go's own HTTP server.
//
//	APP_WEBHOOK_SECRET=whsec_… PORT=3000 go run .
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

type event struct {
	Type string
	Data struct{ Ref *string }
}

func main() {
	webhook, err := standardwebhooks.NewWebhook(os.Getenv("APP_WEBHOOK_SECRET"))
	if err != nil {
		log.Fatal(err)
	}
	var seen sync.Map // your database, in earnest
	http.HandleFunc("POST /hooks", func(answer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(answer, request.Body, 1<<20))
		if err != nil || webhook.Verify(body, request.Header) != nil {
			answer.WriteHeader(http.StatusUnauthorized)
			return
		}
		var took event
		if err := json.Unmarshal(body, &took); err != nil {
			answer.WriteHeader(http.StatusBadRequest)
			return
		}
		if _, again := seen.LoadOrStore(request.Header.Get("webhook-id"), true); !again {
			ref := "-"
			if took.Data.Ref != nil {
				ref = *took.Data.Ref
			}
			fmt.Println(took.Type, ref)
		}
		answer.WriteHeader(http.StatusNoContent)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
