-- file_drop: takes a file out of the index of its tenant. there → nothing. Safe to send twice.
-- KEYS  1 file  2 tenant_files  3 file_bytes  4 file_expiries  5 file_idempotency
-- ARGV  1 id  2 tenant's hash
-- Returns  1, or 0 when it was not there.   Cost: about 8 us.
-- The key of its upload goes with it: a file that is gone must not be the answer to another upload.
local bytes = redis.call('HGET', KEYS[1], 'bytes')
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
local bound = redis.call('GET', KEYS[5])
if bound and string.match(bound, '^([^|]*)|') == ARGV[1] then redis.call('DEL', KEYS[5]) end
if not bytes then return 0 end
if bytes ~= '0' then redis.call('HINCRBY', KEYS[3], ARGV[2], '-' .. bytes) end -- '-0' is no integer
if tonumber(redis.call('HGET', KEYS[3], ARGV[2]) or '0') <= 0 then redis.call('HDEL', KEYS[3], ARGV[2]) end
return 1
