-- batch_create: nothing -> validating.  One atomic, idempotent step; safe to send twice.
-- @include clock
-- KEYS  1 batch  2 index of its tenant  3 active  4 idem  5 its secret
-- ARGV  1 id  2 fingerprint  3 TTL of the idempotency key (ms, 0 = no key)  4 window (ms)  5 secret of its webhook, or ''
--       6 '1' = there is no room for a new one  7.. field, value of the record
-- Returns  {'OK', id}         it is there, now or by this very call before
--          {'DUP', id}        the key has made that batch
--          {'CONFLICT', id}   the key was used with other content
--          {'FULL', id}       it would be a new one
local idem_ttl_ms = tonumber(ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 1 then return {'OK', ARGV[1]} end
if idem_ttl_ms > 0 then
  local id, fingerprint = (redis.call('GET', KEYS[4]) or ''):match('^([^|]+)|(.+)$')
  if id and id ~= ARGV[1] then
    if fingerprint ~= ARGV[2] then return {'CONFLICT', id} end
    return {'DUP', id}
  end
end
if ARGV[6] == '1' then return {'FULL', ARGV[1]} end
if idem_ttl_ms > 0 then
  redis.call('SET', KEYS[4], ARGV[1] .. '|' .. ARGV[2], 'PX', idem_ttl_ms)
end
local now = now_ms()
redis.call('HSET', KEYS[1], 'status', 'validating', 'created_at_ms', now,
  'expires_at_ms', string.format('%.0f', now + tonumber(ARGV[4])), unpack(ARGV, 7))
if ARGV[5] ~= '' then redis.call('SET', KEYS[5], ARGV[5]) end
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('ZADD', KEYS[3], now, ARGV[1])
return {'OK', ARGV[1]}
