// The load generator and the sink of the benchmark, compiled: they take little of the cores that are measured.
//
//	tool load PORT[,PORT…] CONNECTIONS SECONDS PATH KIND
//	tool sink
//	tool events SINK_PORT PORT CONNECTIONS COUNT RATE PATH KIND
//
// `load` and `sink` are called like bench/load.py and bench/sink.py, and print the same. `events` sends COUNT callbacks, RATE a
// second (0: as fast as the connections allow), listens as the destination meanwhile, and tells how long each event took.
package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	basic    = "bench:bench-password"
	secret   = "bench-secret-0123456789abcdefghijklmnop"
	sample   = "receiver/demo/samples/speech.mp3"
	words    = "The order that was placed this morning is ready to be picked up. "
	patience = 60 * time.Second
)

// perSecond is how many requests are made ahead for each second of a load.
var perSecond = map[string]float64{"listen": 12000, "deapi": 12000, "speech": 6000, "long": 600}

var sound = sync.OnceValue(func() []byte {
	read, err := os.ReadFile(sample)
	fail(err)
	return read
})

// seconds returns the machine's monotonic clock, which Python calls perf_counter.
func seconds() float64 {
	var now syscall.Timespec
	const monotonic = 1
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&now)), 0)
	return float64(now.Sec) + float64(now.Nsec)/1e9
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	fail(err)
	return value
}

func tell(found map[string]any) {
	line, err := json.Marshal(found)
	fail(err)
	fmt.Println(string(line))
}

// ---------------------------------------------------------------- requests

var marker = fmt.Sprintf("%012x-", time.Now().UnixNano()&0xffffffffffff)

// body returns headers and body of a callback with an id of its own, as bench/load.py makes them.
func body(kind, id string) (string, []byte) {
	authorization := "authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(basic)) + "\r\n"
	switch kind {
	case "listen":
		return "content-type: application/json\r\n" + authorization, []byte(`{"metadata": {"request_id": "` + id +
			`", "sha256": "154e291ecfa8be6ab8343560bcc109008fa7853eb5372533e8efdefc9b504c33", "created": ` +
			`"2026-11-21T01:02:03.456Z", "duration": 19.4, "channels": 1, "models": ` +
			`["30089e05-99d1-4376-b32e-c263170674af"], "model_info": {"30089e05-99d1-4376-b32e-c263170674af": ` +
			`{"name": "general", "version": "1"}}}, "results": {"channels": [{"alternatives": [{"transcript": "` +
			strings.Repeat(words, 18) + `", "confidence": 0.99, "words": []}]}]}}`)
	case "speech", "long":
		content := sound()
		if kind == "long" {
			content = bytes.Repeat(content, 25)
		}
		return "content-type: audio/mpeg\r\n" + authorization + "dg-request-id: " + id + "\r\n", content
	case "deapi":
		made := []byte(`{"event": "job.completed", "delivery_id": "` + id + `", "timestamp": "2026-11-21T01:02:03.456Z", ` +
			`"data": {"job_request_id": "` + id + `", "status": "done", "previous_status": "processing", ` +
			`"job_type": "txt2audio", "result_url": "https://results.example.test/` + id + `.mp3?signature=` +
			strings.Repeat("a", 1500) + `", "processing_time_ms": 45000}}`)
		stamp := strconv.FormatInt(time.Now().Unix(), 10)
		proof := hmac.New(sha256.New, []byte(secret))
		proof.Write(append([]byte(stamp+"."), made...))
		return "content-type: application/json\r\nx-deapi-timestamp: " + stamp + "\r\nx-deapi-signature: sha256=" +
			hex.EncodeToString(proof.Sum(nil)) + "\r\n", made
	}
	fail(errors.New("KIND is listen, speech, long or deapi"))
	return "", nil
}

func request(path, kind string, n int) []byte {
	headers, content := body(kind, marker+strconv.Itoa(n))
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nhost: b\r\n%scontent-length: %d\r\n\r\n", path, headers, len(content))
	return append([]byte(head), content...)
}

func requests(path, kind string, count int) [][]byte {
	made := make([][]byte, count)
	for n := range made {
		made[n] = request(path, kind, n)
	}
	return made
}

// message reads a head and as many bytes as it says; it returns the first line and the body.
func message(from *bufio.Reader) (string, []byte, error) {
	first, err := from.ReadString('\n')
	if err != nil {
		return "", nil, err
	}
	length := 0
	for {
		line, err := from.ReadString('\n')
		if err != nil {
			return "", nil, err
		}
		line = strings.TrimSpace(line)
		if line == "" {
			break
		}
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "content-length") {
			length = number(strings.TrimSpace(value))
		}
	}
	content := make([]byte, length)
	_, err = io.ReadFull(from, content)
	return first, content, err
}

// send sends one request and returns the status of its answer.
func send(to net.Conn, from *bufio.Reader, made []byte) int {
	to.SetDeadline(time.Now().Add(patience))
	_, err := to.Write(made)
	fail(err)
	first, _, err := message(from)
	fail(err)
	return number(strings.Fields(first)[1])
}

func connect(port string) (net.Conn, *bufio.Reader) {
	made, err := net.Dial("tcp", "127.0.0.1:"+port)
	fail(err)
	return made, bufio.NewReaderSize(made, 8192)
}

func percentile(of []float64, part float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sort.Float64s(of)
	return of[min(len(of)-1, int(float64(len(of))*part))]
}

// ---------------------------------------------------------------- load

func load(ports []string, connections int, duration float64, path, kind string) {
	made := requests(path, kind, int(duration*perSecond[kind])+connections)
	took, statuses := make([]float64, len(made)), make([]int, len(made))
	var next atomic.Int64
	var all sync.WaitGroup
	begin := make(chan struct{})
	var until float64
	for k := 0; k < connections; k++ {
		to, from := connect(ports[k%len(ports)])
		all.Add(1)
		go func() {
			defer all.Done()
			<-begin
			for {
				n := int(next.Add(1) - 1)
				sent := seconds()
				if n >= len(made) || sent >= until {
					return
				}
				statuses[n] = send(to, from, made[n])
				took[n] = 1000 * (seconds() - sent)
			}
		}()
	}
	began := seconds()
	until = began + duration
	close(begin)
	all.Wait()
	whole := seconds() - began
	counts, latencies := map[int]int{}, []float64{}
	for n, status := range statuses {
		if status > 0 {
			counts[status]++
			latencies = append(latencies, took[n])
		}
	}
	tell(map[string]any{
		"requests": len(latencies), "seconds": whole, "rate": float64(len(latencies)) / whole, "statuses": counts,
		"p50_ms": percentile(latencies, 0.5), "p99_ms": percentile(latencies, 0.99),
	})
}

// ---------------------------------------------------------------- sink

// serve answers 200 at the least cost to whatever comes, and passes each body on.
func serve(listener net.Listener, seen func(content []byte)) {
	answer := []byte("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok")
	for {
		came, err := listener.Accept()
		fail(err)
		go func() {
			defer came.Close()
			from := bufio.NewReaderSize(came, 16384)
			for {
				_, content, err := message(from)
				if err != nil {
					return
				}
				seen(content)
				if _, err = came.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}

func sink() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	var guard sync.Mutex
	reached := sync.NewCond(&guard)
	var first, last float64
	count := 0
	go serve(listener, func([]byte) {
		now := seconds()
		guard.Lock()
		defer guard.Unlock()
		if count == 0 {
			first = now
		}
		last = now
		count++
		reached.Broadcast()
	})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		wanted := number(strings.Fields(lines.Text())[1])
		guard.Lock()
		for count < wanted {
			reached.Wait()
		}
		tell(map[string]any{"first": first, "last": last, "seen": count})
		count = 0
		guard.Unlock()
	}
}

// ---------------------------------------------------------------- events

type event struct {
	sent, answered, arrived float64
	times                   int
}

func events(sinkPort, port string, connections, count int, rate float64, path, kind string) {
	listener, err := net.Listen("tcp", "127.0.0.1:"+sinkPort)
	fail(err)
	made, all := requests(path, kind, count), make([]event, count)
	var guard sync.Mutex
	left := count
	arrived := make(chan struct{})
	go serve(listener, func(content []byte) {
		now := seconds()
		_, rest, ours := bytes.Cut(content, []byte(marker))
		if !ours {
			return
		}
		n := 0
		for _, digit := range rest {
			if digit < '0' || digit > '9' {
				break
			}
			n = 10*n + int(digit-'0')
		}
		guard.Lock()
		defer guard.Unlock()
		all[n].times++
		if all[n].times == 1 {
			all[n].arrived = now
			if left--; left == 0 {
				close(arrived)
			}
		}
	})
	var next atomic.Int64
	var senders sync.WaitGroup
	began := seconds()
	for k := 0; k < connections; k++ {
		to, from := connect(port)
		senders.Add(1)
		go func() {
			defer senders.Done()
			for {
				n := int(next.Add(1) - 1)
				if n >= count {
					return
				}
				if rate > 0 {
					time.Sleep(time.Duration((began + float64(n)/rate - seconds()) * 1e9))
				}
				sent := seconds()
				if status := send(to, from, made[n]); status != 200 {
					fail(fmt.Errorf("answered %d", status))
				}
				answered := seconds()
				guard.Lock()
				all[n].sent, all[n].answered = sent, answered
				guard.Unlock()
			}
		}()
	}
	senders.Wait()
	select {
	case <-arrived:
	case <-time.After(patience):
	}
	guard.Lock()
	var answers, afterAnswer, whole []float64
	lost, doubled, last := 0, 0, began
	for _, one := range all {
		answers = append(answers, 1000*(one.answered-one.sent))
		if one.times == 0 {
			lost++
			continue
		}
		if one.times > 1 {
			doubled++
		}
		last = max(last, one.arrived)
		afterAnswer = append(afterAnswer, 1000*(one.arrived-one.answered))
		whole = append(whole, 1000*(one.arrived-one.sent))
	}
	tell(map[string]any{
		"lost": lost, "doubled": doubled, "rate": float64(count) / (last - began),
		"ack_p50_ms": percentile(answers, 0.5), "ack_p99_ms": percentile(answers, 0.99),
		"ack_to_sink_p50_ms": percentile(afterAnswer, 0.5), "ack_to_sink_p99_ms": percentile(afterAnswer, 0.99),
		"send_to_sink_p50_ms": percentile(whole, 0.5), "send_to_sink_p99_ms": percentile(whole, 0.99),
	})
}

func main() {
	words := os.Args[1:]
	switch {
	case len(words) == 6 && words[0] == "load":
		duration, err := strconv.ParseFloat(words[3], 64)
		fail(err)
		load(strings.Split(words[1], ","), number(words[2]), duration, words[4], words[5])
	case len(words) == 1 && words[0] == "sink":
		sink()
	case len(words) == 8 && words[0] == "events":
		rate, err := strconv.ParseFloat(words[5], 64)
		fail(err)
		events(words[1], words[2], number(words[3]), number(words[4]), rate, words[6], words[7])
	default:
		fail(errors.New("usage: tool load PORTS CONNECTIONS SECONDS PATH KIND | tool sink | tool events SINK_PORT PORT CONNECTIONS COUNT RATE PATH KIND"))
	}
}
