-- discard: the result of a request goes away. Terminal: at once; otherwise a moment after its end, so that readers that
-- follow it still see how it ended. The record stays as the mark of it. Idempotent; cancels nothing.
-- KEYS  1 rec  2 log      ARGV  1 how long the log stays after an end that is yet to come (ms)
-- Returns  'OK'   'GONE' no record
if redis.call('EXISTS', KEYS[1]) == 0 then return 'GONE' end
redis.call('HSET', KEYS[1], 'discarded', '1', 'keep_ms', ARGV[1])
if redis.call('HEXISTS', KEYS[1], 'finished_at_ms') == 1 then redis.call('DEL', KEYS[2]) end
return 'OK'
