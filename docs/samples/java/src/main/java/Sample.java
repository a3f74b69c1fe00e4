import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.standardwebhooks.Webhook;
import com.standardwebhooks.exceptions.WebhookVerificationException;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.http.HttpHeaders;
import java.nio.charset.StandardCharsets;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;

/** Takes receiver's events with Java's own HTTP server: mvn compile exec:java -Dexec.mainClass=Sample */
public class Sample {
  private static final Set<String> SEEN = ConcurrentHashMap.newKeySet(); // your database, in earnest

  public static void main(String[] arguments) throws IOException {
    Webhook webhook = new Webhook(System.getenv("APP_WEBHOOK_SECRET"));
    int port = Integer.parseInt(System.getenv("PORT"));
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
    server.createContext("/hooks", exchange -> {
      try (exchange) {
        exchange.sendResponseHeaders(take(webhook, exchange), -1);
      }
    });
    server.start();
  }

  private static int take(Webhook webhook, HttpExchange exchange) throws IOException {
    String body = new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
    HttpHeaders headers = HttpHeaders.of(exchange.getRequestHeaders(), (name, value) -> true);
    try {
      webhook.verify(body, headers);
    } catch (WebhookVerificationException refused) {
      return 401;
    }
    if (SEEN.add(headers.firstValue("webhook-id").orElseThrow())) {
      JsonObject event = JsonParser.parseString(body).getAsJsonObject();
      String ref = event.getAsJsonObject("data").get("ref").getAsString();
      System.out.println(event.get("type").getAsString() + " " + ref);
    }
    return 204;
  }
}
