-- ackbox: removes control messages that the worker has. A second call, because a reply can be lost.
-- KEYS  1 box      ARGV  1.. the messages, as read
-- Returns  how many were removed.
local removed = 0
for i = 1, #ARGV do removed = removed + redis.call('LREM', KEYS[1], 1, ARGV[i]) end
return removed
