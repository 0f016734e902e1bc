-- release: lets the next suspect out of quarantine: from the quarantine queue to its lane, where it goes before what has
-- not started; one at a time in a pool.
-- The one that is out has ended when its record is terminal or gone; so nothing has to be told when it ends.
-- @include enqueue
-- KEYS  1 suspect  2 quarantine queue  3 its ledger  4 rec of the one that is out  5 rec of the next one
--       then per lane: queue, fair, ledger
-- ARGV  1 rid that is out as last seen ('-' = none)  2 rid of the next one as last seen  3.. names of the lanes
-- Returns  'OK' it is out   'BUSY' one is out already   'EMPTY' nobody waits   'STALE' the entry was left over and is gone
--          'RETRY' somebody else was faster: look again
if (redis.call('GET', KEYS[1]) or '-') ~= ARGV[1] then return 'RETRY' end
local out = redis.call('HMGET', KEYS[4], 'state', 'queue')
if out[1] == 'running' or (out[1] == 'queued' and out[2] ~= 'quarantine') then return 'BUSY' end
local head = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', '1')[1]
if not head then
  redis.call('DEL', KEYS[1])
  return 'EMPTY'
end
if head[2][2] ~= ARGV[2] then return 'RETRY' end
local v = redis.call('HMGET', KEYS[5], 'state', 'entry', 'cost', 'tenant', 'bytes', 'lane')
local tenant, cost, bytes = v[4] or '', v[3] or 0, v[5] or 0
dequeue({queue = KEYS[2], ledger = KEYS[3]}, head[1], tenant, cost, bytes)
if v[1] ~= 'queued' or v[2] ~= head[1] then return 'STALE' end
local q, name = lane_among(v[6], 6, 3)
local entry = enqueue(q, ARGV[2], tenant, cost, bytes, true)
redis.call('HSET', KEYS[5], 'queue', name, 'entry', entry)
redis.call('SET', KEYS[1], ARGV[2])
return 'OK'
