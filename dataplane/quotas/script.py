"""The fleet's buckets: a script that Redis runs, by its own clock, whole or not at all.

A tenant's bucket fills at its rate up to its burst, less what instances hold of it. An instance
gets of what is there in proportion to what it was asked for, and never a part of a token where it
needs a whole one. A burst uses in advance what the next seconds bring: afterwards a `floor` under
the level rises for PAY_S seconds, and what is below it is handed to nobody until the tenant rested;
so ten seconds bring what they should, burst or not. Quotas below SLOW_RATE, whose bursts are a few
requests, have no floor.

What an instance holds is forgotten LEASE_S after it was last heard, and then its tokens are lost;
so are those that it gave back in a call that failed. A bucket that Redis has lost begins full, or
empty where somebody still uses it. A clock that jumps fills a bucket once, at most.
"""

from __future__ import annotations

LEASE_S = 2.0
LIVE_S = 5.0
PAY_S = 8.0
SLOW_RATE = 10.0
# Tokens come in steps of some tenths of a second: what those may hold that is no burst.
SLACK_S = 0.25
# The part of its rate below which a tenant rests.
RESTS = 0.9
KEEP_MS = 60_000

# KEYS: the instances, then one for each tenant. ARGV: who calls, and the packed calls, each
# [rate, burst, owed, given, wanted, demand, credit, places, peak, is_known].
# Returns the number of instances and, packed, [granted, share, places] for each call.
SCRIPT = f"""
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local me = ARGV[1]
local calls = cmsgpack.unpack(ARGV[2])
redis.call('ZADD', KEYS[1], now, me)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - {LIVE_S}))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. (now + {LIVE_S}), '+inf')
redis.call('PEXPIRE', KEYS[1], {KEEP_MS})
local instances = redis.call('ZCARD', KEYS[1])

local function read(key, burst, is_known)
    local kept = redis.call('GET', key)
    if kept then
        return cmsgpack.unpack(kept)
    end
    return {{level = is_known and 0 or burst, floor = 0, pay = 0, at = now, peers = {{}}}}
end

local function others(bucket)
    local held, demand, peak = 0, 0, 0
    for id, peer in pairs(bucket.peers) do
        if id == me or math.abs(now - peer[4]) > {LEASE_S} then
            bucket.peers[id] = nil
        else
            held, demand, peak = held + math.max(0, peer[1]), demand + peer[2], peak + peer[3]
        end
    end
    return held, demand, peak
end

local function fill(bucket, rate, burst, held, demand)
    local elapsed = math.max(0, now - bucket.at)
    bucket.at = now
    -- What waits above the floor for its next taker is not lost.
    local highest = math.max(burst - held, bucket.floor + 2 * rate * {SLACK_S})
    bucket.level = math.min(bucket.level + rate * elapsed, math.max(bucket.level, highest))
    if rate < {SLOW_RATE} then
        return
    end
    local deepest = math.max(0, burst - rate * {SLACK_S})
    if bucket.level >= burst - held and demand <= {RESTS} * rate then
        bucket.floor, bucket.pay = 0, 0
    elseif bucket.pay == 0 and burst - held - bucket.level > rate * {SLACK_S} then
        bucket.pay = deepest / {PAY_S}
    end
    bucket.floor = math.min(deepest, bucket.floor + bucket.pay * elapsed)
end

local function grant(there, wanted, demand, all)
    if wanted <= 0 or there <= 0 then
        return 0
    end
    local part = there / instances
    if all > 0 then
        part = there * demand / all
    end
    local granted = math.min(wanted, math.max(part, math.min(1, there)))
    if granted < 1 and wanted >= 1 then
        return 0
    end
    return granted
end

local answers = {{}}
for i, call in ipairs(calls) do
    local rate, owed, given, wanted = call[1], call[3], call[4], call[5]
    -- Tokens come in steps; a burst that is smaller would lose some.
    local burst = math.max(call[2], rate * {SLACK_S})
    local demand, credit, places, peak = call[6], call[7], call[8], call[9]
    local bucket = read(KEYS[i + 1], burst, call[10])
    local held, their_demand, their_peak = others(bucket)
    local all = demand + their_demand
    bucket.level = bucket.level - owed + given
    fill(bucket, rate, burst, held + math.max(0, credit), all)
    local granted = grant(bucket.level - bucket.floor, wanted, demand, all)
    bucket.level = bucket.level - granted
    bucket.peers[me] = {{credit + granted, demand, peak, now}}
    redis.call('SET', KEYS[i + 1], cmsgpack.pack(bucket), 'PX', {KEEP_MS})
    local share, seats = rate / instances, places / instances
    if all > 0 then
        share = rate * demand / all
    end
    if peak + their_peak > 0 then
        seats = places * peak / (peak + their_peak)
    end
    answers[i] = {{granted, share, seats}}
end
return {{instances, cmsgpack.pack(answers)}}
"""
