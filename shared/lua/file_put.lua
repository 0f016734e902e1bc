-- file_put: enters a stored file into the index of its tenant. nothing → there. Safe to send twice.
-- KEYS  1 file  2 tenant_files  3 file_bytes  4 file_expiries  5 file_idempotency
-- ARGV  1 id  2 tenant's hash  3 bytes  4 expires_at, Unix s (0 never)  5 most bytes of the tenant (0 unbounded)
--       6 most files of the tenant (0 unbounded)  7 fingerprint of the upload ('' without a key)  8 TTL of the key, ms
--       9 id that may lose the key to this one, because it is gone ('' none)  then pairs: field, value of the facts
-- Returns  {'OK'} · {'DUP', id, fingerprint}: the key has led to another file · {'BYTES', stored} · {'FILES', stored}:
--          the tenant would have more than it may.   Cost: about 10 us.
if redis.call('EXISTS', KEYS[1]) == 1 then return {'OK'} end
if ARGV[7] ~= '' then
  local bound = redis.call('GET', KEYS[5])
  if bound then
    local id, fingerprint = string.match(bound, '^([^|]*)|(.*)$')
    if id ~= ARGV[9] then return {'DUP', id, fingerprint} end
  end
end
local stored = tonumber(redis.call('HGET', KEYS[3], ARGV[2]) or '0')
if tonumber(ARGV[5]) > 0 and stored + tonumber(ARGV[3]) > tonumber(ARGV[5]) then return {'BYTES', stored} end
local files = redis.call('ZCARD', KEYS[2])
if tonumber(ARGV[6]) > 0 and files >= tonumber(ARGV[6]) then return {'FILES', files} end
for i = 10, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('HINCRBY', KEYS[3], ARGV[2], ARGV[3])
if ARGV[4] ~= '0' then redis.call('ZADD', KEYS[4], ARGV[4], ARGV[1]) end
if ARGV[7] ~= '' then redis.call('SET', KEYS[5], ARGV[1] .. '|' .. ARGV[7], 'PX', ARGV[8]) end
return {'OK'}
