# Takes receiver's events with WEBrick. The signature is that of Standard Webhooks, checked with what Ruby brings.
#
# gem install webrick
# APP_WEBHOOK_SECRET=whsec_… PORT=3000 ruby app.rb

require "base64"
require "json"
require "openssl"
require "set"
require "webrick"

KEY = Base64.strict_decode64(ENV.fetch("APP_WEBHOOK_SECRET").delete_prefix("whsec_"))

def signed?(request, body)
  stamp = request["webhook-timestamp"].to_s
  return false unless (Time.now.to_i - stamp.to_i).abs < 300

  mac = OpenSSL::HMAC.digest("SHA256", KEY, "#{request["webhook-id"]}.#{stamp}.#{body}")
  wanted = "v1,#{Base64.strict_encode64(mac)}"
  request["webhook-signature"].to_s.split.any? { |given| OpenSSL.secure_compare(given, wanted) }
end

seen = Set.new # your database, in earnest
lock = Mutex.new
server = WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: ENV.fetch("PORT").to_i, AccessLog: [])
server.mount_proc("/hooks") do |request, response|
  body = request.body.to_s
  response.status = signed?(request, body) ? 204 : 401
  if response.status == 204 && lock.synchronize { seen.add?(request["webhook-id"]) }
    event = JSON.parse(body)
    puts "#{event["type"]} #{event["data"]["ref"]}"
    $stdout.flush
  end
end
trap("TERM") { server.shutdown }
server.start
