-- survey: what the metrics of a pool say. Reads only.
-- @include clock rate
-- KEYS  1 sched  2 lanes  3 dlq  then per queue: queue, ledger, fair (the queue again where it has none)
--       then per worker: lease, run
-- ARGV  1 how many queues  2 most fields of a ledger that are looked at for the index of fairness  then names of the queues
-- Returns  {now (Unix ms), dead letters, arriving (tokens/s), one worker's pace (tokens/s, '' = unknown), mean cost (tokens),
--           queues, workers}
--   queues   {name, requests, oldest (Unix ms, 0 = empty), tokens, bytes, tenants, drain rate (requests/s, '' = unknown),
--            aged picks, '1' = paused, '1' = draining, fairness ('' = unknown), of the requests: had started before} each
--   workers  {1 = its lease lives, requests it owns} each
-- Fairness: Jain's index over what each tenant that waits now was served, in tokens, for each token that was its due since
-- it began to wait, which is how far the lane's virtual time has come since. Tenants count whose due is four times their
-- largest request, since requests are served whole; of many tenants, those that a scan finds first.
-- Cost: about 10 us a queue and 2 us a worker, and up to 0.3 ms for each lane in which very many tenants wait.
local now, queues = now_ms(), tonumber(ARGV[1])
local function fairness(ledger, v)
  local counted, sum, squares = 0, 0, 0
  local found = redis.call('HSCAN', ledger, '0', 'MATCH', 'a:*', 'COUNT', ARGV[2])[2]
  for i = 2, #found, 2 do
    local since, got, largest = found[i]:match('^(%S+) (%S+) (%S+)$')
    local due = v - since
    if due > 0 and due >= 4 * largest then
      local part = got / due
      counted, sum, squares = counted + 1, sum + part, squares + part * part
    end
  end
  if counted < 2 then return '' end
  return squares > 0 and string.format('%.4f', sum * sum / (counted * squares)) or '1'
end

local fields = {'arrivals', 'work'}
local settings = {}
for i = 1, queues do
  local name = ARGV[2 + i]
  fields[#fields + 1], fields[#fields + 2] = 'rate:' .. name, 'aged:' .. name
  settings[#settings + 1], settings[#settings + 2] = name .. '.paused', name .. '.draining'
end
local kept, set = redis.call('HMGET', KEYS[1], unpack(fields)), redis.call('HMGET', KEYS[2], unpack(settings))
local seen = {}
for i = 1, queues do
  local queue, ledger, fair = KEYS[1 + 3 * i], KEYS[2 + 3 * i], KEYS[3 + 3 * i]
  local head = redis.call('XRANGE', queue, '-', '+', 'COUNT', '1')[1]
  local held = redis.call('HMGET', ledger, 'c', 'b', 't', 'v')
  local rate = drain_rate(kept[1 + 2 * i])
  seen[i] = {ARGV[2 + i], redis.call('XLEN', queue), head and tonumber(head[1]:match('^(%d+)')) or 0,
    tonumber(held[1] or '0'), tonumber(held[2] or '0'), tonumber(held[3] or '0'), rate and string.format('%.6g', rate) or '',
    tonumber(kept[2 + 2 * i] or '0'), set[2 * i - 1] or '0', set[2 * i] or '0',
    held[4] and fairness(ledger, tonumber(held[4])) or '',
    fair ~= queue and redis.call('ZCOUNT', fair, '-inf', '(0') or 0}
end
local workers = {}
for i = 4 + 3 * queues, #KEYS, 2 do
  workers[#workers + 1] = {redis.call('EXISTS', KEYS[i]), redis.call('HLEN', KEYS[i + 1])}
end
local pace, mean = per_worker(kept[2])
return {now, redis.call('XLEN', KEYS[3]), string.format('%.6g', arrival_rate(kept[1], now)),
  pace and string.format('%.6g', pace) or '', tostring(mean), seen, workers}
