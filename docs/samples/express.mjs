// Takes receiver's events with Express.
//
// npm install express standardwebhooks
// APP_WEBHOOK_SECRET=whsec_… PORT=3000 node express.mjs

import express from "express";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.APP_WEBHOOK_SECRET);
const seen = new Set(); // your database, in earnest
const app = express();

// The signature is over the raw bytes: no JSON parser before it.
app.post("/hooks", express.raw({ type: "application/json" }), (request, response) => {
  let event;
  try {
    event = webhook.verify(request.body, request.headers);
  } catch {
    return response.status(401).end();
  }
  if (!seen.has(request.headers["webhook-id"])) {
    seen.add(request.headers["webhook-id"]);
    console.log(event.type, event.data.ref);
  }
  response.status(204).end();
});

app.listen(Number(process.env.PORT), "127.0.0.1");
