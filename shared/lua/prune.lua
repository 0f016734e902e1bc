-- prune: drops finish tags of tenants that are gone from a slice of a lane's ledger. A tag that lies behind the virtual time
-- is no debt any more, whether or not its tenant waits; `dequeue` drops those that lie behind when a tenant's last request
-- leaves, but most lie ahead then, and nobody comes by again.
-- KEYS  1 ledger      ARGV  1 cursor ('0' = begin)  2 fields to look at
-- Returns  {cursor ('0' = that was all), how many were dropped}
-- Safe to send twice. Cost: about 0.2 us a field of the slice.
local v = tonumber(redis.call('HGET', KEYS[1], 'v') or '0')
local reply = redis.call('HSCAN', KEYS[1], ARGV[1], 'MATCH', 'f:*', 'COUNT', ARGV[2])
local found, dropped = reply[2], 0
for i = 1, #found, 2 do
  if tonumber(found[i + 1]) <= v then dropped = dropped + redis.call('HDEL', KEYS[1], found[i]) end
end
return {reply[1], dropped}
