package gate

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"countersign/policy"
)

// budgets count what policy's limits let through. They are kept in memory: a
// restart begins with full ones.
type budgets struct {
	mu sync.Mutex
	// calls are the budgets of identical calls, apart from the others, because
	// a caller can make as many of them as it likes.
	calls, others map[string]*budget
}

type budget struct {
	limiter *rate.Limiter
	limit   policy.Limit
}

// maxCalls bounds how many identical-call budgets are kept.
const maxCalls = 10_000

// draw is what one call takes from one budget.
type draw struct {
	limit policy.Limit
	key   string
	n     int
}

// draws lists what a call takes from each of policy's limits.
func draws(c *call) []draw {
	var out []draw
	byName := map[string]int{}
	for i := range c.Plan.Actions {
		for _, limit := range c.policy.Limits(&c.Principal, c.Tool, &c.Plan.Actions[i]) {
			at, ok := byName[limit.Name]
			if !ok {
				at = len(out)
				byName[limit.Name] = at
				key := limit.Name + "\n"
				switch limit.By {
				case policy.ByPrincipal:
					key += c.Principal.Key()
				case policy.ByTool:
					key += c.Tool
				case policy.ByCall:
					key += questionKey(c.Principal, c.planDigest)
				}
				out = append(out, draw{limit: limit, key: key})
			}
			if limit.By == policy.ByCall {
				out[at].n = 1 // the call as a whole is what is repeated
			} else {
				out[at].n++
			}
		}
	}
	return out
}

// take draws on the budgets. When one of them does not hold enough, nothing is
// taken from any, and the draw that failed is returned with how long to wait; 0
// is for ever.
func (b *budgets) take(all []draw, now time.Time) (failed *draw, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	limiters := make([]*rate.Limiter, len(all))
	for i, d := range all {
		limiters[i] = b.limiter(d, now)
		if lacking := float64(d.n) - limiters[i].TokensAt(now); lacking > 0 && failed == nil {
			failed = &all[i]
			if d.n <= d.limit.Calls {
				wait = max(time.Duration(lacking/float64(limiters[i].Limit())*float64(time.Second)).Round(time.Second), time.Second)
			}
		}
	}
	if failed != nil {
		return failed, wait
	}
	for i, d := range all {
		limiters[i].AllowN(now, d.n)
	}
	return nil, 0
}

// limiter finds or makes a budget; one whose limit has changed begins anew.
func (b *budgets) limiter(d draw, now time.Time) *rate.Limiter {
	kept := &b.others
	if d.limit.By == policy.ByCall {
		kept = &b.calls
	}
	if *kept == nil {
		*kept = map[string]*budget{}
	}
	if have := (*kept)[d.key]; have != nil && have.limit.Calls == d.limit.Calls && have.limit.Per == d.limit.Per {
		return have.limiter
	}
	if d.limit.By == policy.ByCall && len(b.calls) >= maxCalls {
		// Those that are full count nothing any more. Should all be in use, none is kept.
		maps.DeleteFunc(b.calls, func(_ string, have *budget) bool {
			return have.limiter.TokensAt(now) >= float64(have.limit.Calls)
		})
		if len(b.calls) >= maxCalls {
			clear(b.calls)
		}
	}
	made := &budget{rate.NewLimiter(rate.Limit(float64(d.limit.Calls)/d.limit.Per.Seconds()), d.limit.Calls), d.limit}
	(*kept)[d.key] = made
	return made.limiter
}

// limited applies policy's limits to a decided call. A call that policy refuses
// draws only on the budgets of identical calls.
func (g *Gate) limited(c *call, d policy.Decision) policy.Decision {
	var enforced, shadow []draw
	for _, one := range draws(c) {
		switch {
		case d.Effect == policy.Deny && one.limit.By != policy.ByCall:
		case one.limit.Shadow:
			shadow = append(shadow, one)
		default:
			enforced = append(enforced, one)
		}
	}
	now := g.Now()
	if failed, _ := g.budgets.take(shadow, now); failed != nil && d.Effect != policy.Deny {
		d.Shadow = &policy.Shadow{Effect: policy.Deny, Rules: []string{failed.limit.Name}, Reason: limitReason(failed, 0)}
	}
	failed, wait := g.budgets.take(enforced, now)
	if failed == nil {
		return d
	}
	return policy.Decision{
		Effect: policy.Deny, Rules: []string{failed.limit.Name}, Reason: limitReason(failed, wait),
		Risks: d.Risks, Digest: d.Digest,
	}
}

func limitReason(d *draw, wait time.Duration) string {
	what := "requests"
	if d.limit.By == policy.ByCall {
		what = "identical calls"
	}
	text := fmt.Sprintf("limit %s: at most %d %s in %s", d.limit.Name, d.limit.Calls, what, d.limit.Per)
	switch {
	case wait > 0:
		text += fmt.Sprintf("; there is room again in %s", wait)
	case d.n > d.limit.Calls:
		text += fmt.Sprintf(", and this call alone is %d", d.n)
	}
	if d.limit.Message != "" {
		text += ". " + d.limit.Message
	}
	return text
}
