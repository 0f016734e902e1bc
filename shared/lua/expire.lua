-- expire: ends a request whose deadline has passed. queued -> expired at once; running -> its owner is told.
-- What was never claimed ends as queue_timeout; what was, and waits for another worker, as deadline_exceeded: a part of its
-- answer may be visible.
-- @include clock enqueue finish
-- KEYS  1 rec  2 queue  3 box of the owner  4 body  5 log  6 chan  7 tenants  8 deadlines  9 fin
--       10 control channel of the owner  11 fair (the queue again where it has none)  12 ledger
-- ARGV  1 rid  2 owner as last seen  3 queue as last seen  4 frame for queue_timeout  5 result TTL (ms)
--       6 frame for deadline_exceeded
-- Returns  'DONE'  'SENT'  'RETRY'  'EARLY' the deadline lies ahead  'GONE'  or the terminal state
local v = redis.call('HMGET', KEYS[1], 'state', 'owner', 'queue', 'entry', 'deadline_ms', 'claims', 'tenant', 'cost',
  'bytes')
local state = v[1]
if not state then
  redis.call('ZREM', KEYS[8], ARGV[1])
  return 'GONE'
end
if now_ms() < tonumber(v[5]) then return 'EARLY' end
if state == 'queued' then
  if v[3] ~= ARGV[3] then return 'RETRY' end
  local q = {queue = KEYS[2], ledger = KEYS[12], fair = KEYS[11] ~= KEYS[2] and KEYS[11] or nil}
  dequeue(q, v[4], v[7] or '', v[8] or 0, v[9] or 0)
  local k = {rec = KEYS[1], body = KEYS[4], log = KEYS[5], chan = KEYS[6], tenants = KEYS[7], deadlines = KEYS[8], fin = KEYS[9]}
  local reason, frame = 'queue_timeout', ARGV[4]
  if tonumber(v[6] or '0') > 0 then reason, frame = 'deadline_exceeded', ARGV[6] end
  finish(k, ARGV[1], 'expired', reason, frame, ARGV[5])
  return 'DONE'
end
if state == 'running' then
  if v[2] ~= ARGV[2] then return 'RETRY' end
  -- told once: the sweep would otherwise push a message a second until the worker has ended it
  redis.call('ZREM', KEYS[8], ARGV[1])
  redis.call('RPUSH', KEYS[3], 'expire ' .. ARGV[1])
  redis.call('PEXPIRE', KEYS[3], 60000)
  redis.call(PUBLISH, KEYS[10], 'expire ' .. ARGV[1]) -- sooner than the box, which waits for a flush or a beat
  return 'SENT'
end
return state
