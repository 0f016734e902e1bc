-- forget: takes requests that have ended away, with record and log: somebody keeps their answers elsewhere, and nobody
-- will ask for them. Those that have not ended stay. Idempotent.
-- KEYS  per request: rec, log      ARGV  none
-- Returns  how many have gone
local gone = 0
for i = 1, #KEYS, 2 do
  if redis.call('HEXISTS', KEYS[i], 'finished_at_ms') == 1 then
    redis.call('DEL', KEYS[i], KEYS[i + 1])
    gone = gone + 1
  end
end
return gone
