-- Included by scripts that measure or use how fast a queue drains.
-- The rate is that of the recent past with a backlog: while nothing waits, starts say how fast requests come, not how fast
-- they could go. Kept as 'starts seconds last_ms', both decaying over 10 s of backlog; last_ms is 0 while nothing waits.
--
-- drained(sched, name, now, left): one request of the queue `name` was started, `left` still wait.
-- drain_rate(text): requests/s from what is kept, or nil while too little is known.
-- standstill(sched, name): the time since the last start does not count, nobody was allowed to start anything.
local function drained(sched, name, now, left)
  local text = redis.call('HGET', sched, 'rate:' .. name)
  local starts, seconds, last = 0, 0, 0
  if text then
    starts, seconds, last = text:match('^(%S+) (%S+) (%S+)$')
    starts, seconds, last = tonumber(starts), tonumber(seconds), tonumber(last)
  end
  if last > 0 then
    local passed = math.max(0, now - last) / 1000
    local keep = math.exp(-passed / 10)
    starts, seconds = starts * keep + 1, seconds * keep + passed
  elseif left <= 0 then
    return
  end
  redis.call('HSET', sched, 'rate:' .. name, string.format('%.6g %.6g %.0f', starts, seconds, left > 0 and now or 0))
end

local function drain_rate(text)
  if not text then return nil end
  local starts, seconds = text:match('^(%S+) (%S+)')
  starts, seconds = tonumber(starts), tonumber(seconds)
  if starts < 3 or seconds < 0.05 then return nil end
  return starts / seconds
end

local function standstill(sched, name)
  local text = redis.call('HGET', sched, 'rate:' .. name)
  if text then redis.call('HSET', sched, 'rate:' .. name, (text:gsub('%S+$', '0'))) end
end
