-- prune: drops finish tags of tenants that are gone from a slice of a lane's ledger. A tag that lies behind the virtual time
-- is no debt any more; `dequeue` drops those that lie behind when a tenant's last request leaves, but most lie ahead then,
-- and nobody comes by again. Where there are very many, as when each request names a tenant of its own, a debt is not worth
-- its place: then those that lie ahead go, too. A tenant that waits keeps its own: its next request goes on there.
-- KEYS  1 ledger      ARGV  1 cursor ('0' = begin)  2 fields to look at
-- Returns  {cursor ('0' = that was all), how many were dropped}
-- Safe to send twice. Cost: about 0.2 us a field of the slice.
local kept = redis.call('HMGET', KEYS[1], 'v', 't')
local v = tonumber(kept[1] or '0')
if redis.call('HLEN', KEYS[1]) > 1000 + 4 * tonumber(kept[2] or '0') then v = math.huge end
local reply = redis.call('HSCAN', KEYS[1], ARGV[1], 'MATCH', 'f:*', 'COUNT', ARGV[2])
local found, dropped = reply[2], 0
for i = 1, #found, 2 do
  if tonumber(found[i + 1]) <= v and redis.call('HEXISTS', KEYS[1], 'n:' .. found[i]:sub(3)) == 0 then
    dropped = dropped + redis.call('HDEL', KEYS[1], found[i])
  end
end
return {reply[1], dropped}
