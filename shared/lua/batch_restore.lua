-- batch_restore: gives Redis back a batch that it has lost, as its manifest has it. Overwrites nothing.
-- KEYS  1 batch  2 index of its tenant  3 active  4 bitmap of committed rows  5 list of parts
--       6 batches whose end is to be told
-- ARGV  1 id  2 bitmap  3 entries of the parts: msgpack list  4 when it was made (Unix ms)  5 'active', 'told', or
--       'untold': it has ended, and nobody may have been told
--       6.. field, value of the record
-- Returns  'OK'   'KNOWN' it is there
if redis.call('EXISTS', KEYS[1]) == 1 then return 'KNOWN' end
redis.call('DEL', KEYS[4], KEYS[5])
if #ARGV[2] > 0 then redis.call('SET', KEYS[4], ARGV[2]) end
local parts = cmsgpack.unpack(ARGV[3])
for i = 1, #parts do redis.call('RPUSH', KEYS[5], parts[i]) end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
redis.call('HDEL', KEYS[1], 'owner', 'lease_ms')
redis.call('ZADD', KEYS[2], 0, ARGV[1])
if ARGV[5] == 'active' then redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1]) end
if ARGV[5] == 'untold' then redis.call('ZADD', KEYS[6], 0, ARGV[1]) end
return 'OK'
