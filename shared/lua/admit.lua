-- admit: nothing -> queued.  One atomic, idempotent step; safe to send twice.
-- @include clock enqueue
-- KEYS  1 idem  2 rec  3 body  4 queue  5 tenants  6 deadlines
-- ARGV  1 rid  2 fingerprint  3 lane  4 body (bytes)  5 tenant  6 lane cap (requests)  7 tenant cap (requests)
--       8 cost (tokens)  9 start by (Unix ms, 0 = no deadline)  10 TTL of the idempotency key (ms, 0 = no key)
--       11 finish by (Unix ms, 0 = the first deadline stays): takes the deadline's place once the request is claimed
--       12 '1' = the key decides; '0' = it is only written, for a client that may send the request again
--       13 rid that may lose the key to this request ('' = none): its end has set the key free
--       14 how long record and log stay after the end (ms, 0 = the ending script's own TTL)
--       15 '1' = the request goes on when its client is gone
-- Returns  {'OK', rid, depth}       queued, or was queued by this very call before
--          {'DUP', rid}             the idempotency key belongs to rid, another request
--          {'CONFLICT', rid}        the key or the id is known with another fingerprint
--          {'EXPIRED'}  {'FULL', depth}  {'TENANT', in_system}
-- Cost: about 30 us.
local known = redis.call('HGET', KEYS[2], 'fingerprint')
if known then
  if known == ARGV[2] then return {'OK', ARGV[1], 0} end
  return {'CONFLICT', ARGV[1]}
end
local idem_ttl_ms = tonumber(ARGV[10])
if idem_ttl_ms > 0 and ARGV[12] == '1' then
  local rid, fingerprint = (redis.call('GET', KEYS[1]) or ''):match('^([^|]+)|(.+)$')
  -- its own key stands there when the server has lost the record alone: then the request is admitted again
  if rid and rid ~= ARGV[1] and (rid ~= ARGV[13] or fingerprint ~= ARGV[2]) then
    if fingerprint ~= ARGV[2] then return {'CONFLICT', rid} end
    return {'DUP', rid}
  end
end
local now = now_ms()
local deadline_ms = tonumber(ARGV[9])
if deadline_ms > 0 and now >= deadline_ms then return {'EXPIRED'} end
local depth = redis.call('XLEN', KEYS[4])
if depth >= tonumber(ARGV[6]) then return {'FULL', depth} end
local in_system = tonumber(redis.call('HGET', KEYS[5], ARGV[5]) or '0')
if in_system >= tonumber(ARGV[7]) then return {'TENANT', in_system} end
local entry = enqueue(KEYS[4], ARGV[1], ARGV[8])
redis.call('SET', KEYS[3], ARGV[4])
redis.call('HSET', KEYS[2], 'state', 'queued', 'fingerprint', ARGV[2], 'lane', ARGV[3], 'queue', ARGV[3], 'entry', entry,
  'tenant', ARGV[5], 'deadline_ms', ARGV[9], 'finish_by_ms', ARGV[11], 'cost', ARGV[8], 'claims', '0',
  'kills', '0', 'queued_at_ms', now)
if tonumber(ARGV[14]) > 0 then redis.call('HSET', KEYS[2], 'keep_ms', ARGV[14]) end
if ARGV[15] == '1' then redis.call('HSET', KEYS[2], 'stays', '1') end
if idem_ttl_ms > 0 and ARGV[12] == '1' then
  redis.call('HSET', KEYS[2], 'idem', KEYS[1], 'idem_ttl_ms', ARGV[10])
end
if idem_ttl_ms > 0 then redis.call('SET', KEYS[1], ARGV[1] .. '|' .. ARGV[2], 'PX', idem_ttl_ms) end
redis.call('HINCRBY', KEYS[5], ARGV[5], 1)
if deadline_ms > 0 then redis.call('ZADD', KEYS[6], ARGV[9], ARGV[1]) end
return {'OK', ARGV[1], depth + 1}
