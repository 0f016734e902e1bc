-- Included by scripts that measure or use how fast a queue drains, and how much work comes and is done.
-- The rate is that of the recent past with a backlog: while nothing waits, starts say how fast requests come, not how fast
-- they could go. Kept as 'starts seconds last_ms', both decaying over 10 s of backlog, or over four starts where those
-- take longer; last_ms is 0 while nothing waits. A gap that is long beside those before counts for a part of it only: a
-- pool that had no worker, or a lane that was paused, does not drain slowly after that. What was measured fades with each
-- start that had no backlog before it and leaves none: a rate of other times would refuse for ever what could start at once,
-- since what is refused makes no backlog.
--
-- drained(text, now, left): what is kept in `rate:<queue>` after one request of it was started, `left` still wait.
-- drain_rate(text): requests/s from what is kept, or nil while too little is known.
-- arrived(text, now, cost): what is kept in `arrivals` after a request of `cost` tokens came, as 'tokens at_ms', decaying
-- over 60 s.
-- arrival_rate(text, now): tokens/s from what is kept.
-- worked(text, now, cost, workers, backlog): what is kept in `work` after one of so many workers has started a request, as
-- 'tokens worker_seconds last_ms mean_cost', decaying over 60 s of backlog; backlog: others wait that could be started.
-- per_worker(text): tokens/s that one worker takes while there is a backlog, or nil; and the mean cost of what was started.
-- standstill(sched, name): the time since the last start does not count, nobody was allowed to start anything.
local function drained(text, now, left)
  local starts, seconds, last = 0, 0, 0
  if text then
    starts, seconds, last = text:match('^(%S+) (%S+) (%S+)$')
    starts, seconds, last = tonumber(starts), tonumber(seconds), tonumber(last)
  end
  if last > 0 then
    local passed = math.min(math.max(0, now - last) / 1000, 10 + 4 * seconds / math.max(1, starts))
    local keep = math.max(math.exp(-passed / 10), 0.75)
    starts, seconds = starts * keep + 1, seconds * keep + passed
  elseif left <= 0 then
    if 0.9 * starts < 3 then return '0 0 0' end -- too little to go by: begin anew
    return string.format('%.6g %.6g 0', 0.9 * starts, 0.9 * seconds)
  end
  return string.format('%.6g %.6g %.0f', starts, seconds, left > 0 and now or 0)
end

local function drain_rate(text)
  if not text then return nil end
  local starts, seconds = text:match('^(%S+) (%S+)')
  starts, seconds = tonumber(starts), tonumber(seconds)
  if starts < 3 or seconds < 0.05 then return nil end
  return starts / seconds
end

local function arrived(text, now, cost)
  local tokens, at = 0, now
  if text then tokens, at = text:match('^(%S+) (%S+)$') end
  tokens = tokens * math.exp(-math.max(0, now - at) / 60000) + cost
  return string.format('%.6g %.0f', tokens, now)
end

local function arrival_rate(text, now)
  if not text then return 0 end
  local tokens, at = text:match('^(%S+) (%S+)$')
  return tokens * math.exp(-math.max(0, now - at) / 60000) / 60
end

local function worked(text, now, cost, workers, backlog)
  local tokens, seconds, last, mean = 0, 0, 0, cost
  if text then
    tokens, seconds, last, mean = text:match('^(%S+) (%S+) (%S+) (%S+)$')
    tokens, seconds, last, mean = tonumber(tokens), tonumber(seconds), tonumber(last), mean + 0.05 * (cost - mean)
  end
  if last > 0 then
    local passed = math.max(0, now - last) / 1000
    local keep = math.exp(-passed / 60)
    tokens, seconds = tokens * keep + cost, seconds * keep + passed * workers
  end
  return string.format('%.6g %.6g %.0f %.6g', tokens, seconds, backlog and now or 0, mean)
end

local function per_worker(text)
  if not text then return nil, 0 end
  local tokens, seconds, _, mean = text:match('^(%S+) (%S+) (%S+) (%S+)$')
  tokens, seconds = tonumber(tokens), tonumber(seconds)
  if seconds < 1 then return nil, mean end
  return tokens / seconds, mean
end

local function standstill(sched, name)
  local text = redis.call('HGET', sched, 'rate:' .. name)
  if text then redis.call('HSET', sched, 'rate:' .. name, (text:gsub('%S+$', '0'))) end
end
