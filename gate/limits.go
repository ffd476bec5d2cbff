package gate

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"countersign/action"
	"countersign/policy"
)

// budgets count what policy's limits let through. They are kept in memory: a
// restart begins with full ones.
type budgets struct {
	mu sync.Mutex
	// by is whose budgets they are: a caller can make as many as it likes of
	// those of identical calls, and must not push out those of others.
	by map[string]map[string]*budget
}

type budget struct {
	limiter *rate.Limiter
	limit   policy.Limit
}

// maxOwners and maxBudgets bound whose budgets are kept, and how many of each. At
// each multiple of sweepEvery it is looked which of them are full.
const (
	maxOwners  = 10_000
	maxBudgets = 1_000
	sweepEvery = 32
)

// draw is what one call takes from one budget.
type draw struct {
	limit policy.Limit
	owner string // empty for a budget that is nobody's own
	key   string
	n     int
}

// draws lists what a planned call takes from each of policy's limits.
func draws(c *call) []draw {
	var out []draw
	for i := range c.Plan.Actions {
		for _, limit := range c.policy.Limits(&c.Principal, c.Tool, &c.Plan.Actions[i]) {
			at := slices.IndexFunc(out, func(d draw) bool { return d.limit.Name == limit.Name })
			if at < 0 {
				at = len(out)
				d := draw{limit: limit, key: limit.Name}
				switch limit.By {
				case policy.ByPrincipal:
					d.owner = c.Principal.Key()
				case policy.ByTool:
					d.key += "\n" + c.Tool
				}
				out = append(out, d)
			}
			out[at].n++
		}
	}
	return out
}

// take draws on the budgets, or only looks whether it could. When one of them
// does not hold enough, nothing is taken from any, and the draw that failed is
// returned with how long to wait; 0 is for ever.
func (b *budgets) take(all []draw, now time.Time, look bool) (failed *draw, wait time.Duration) {
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
	if failed != nil || look {
		return failed, wait
	}
	for i, d := range all {
		limiters[i].AllowN(now, d.n)
	}
	return nil, 0
}

// limiter finds or makes a budget; one whose limit has changed begins anew.
func (b *budgets) limiter(d draw, now time.Time) *rate.Limiter {
	if b.by == nil {
		b.by = map[string]map[string]*budget{}
	}
	own := b.by[d.owner]
	if have := own[d.key]; have != nil && have.limit.Calls == d.limit.Calls && have.limit.Per == d.limit.Per {
		return have.limiter
	}
	// A full budget counts nothing and need not be kept. Should an owner's all be
	// in use, none of them is.
	full := func(_ string, have *budget) bool { return have.limiter.TokensAt(now) >= float64(have.limit.Calls) }
	if own == nil {
		if len(b.by) >= maxOwners {
			maps.DeleteFunc(b.by, func(_ string, own map[string]*budget) bool {
				maps.DeleteFunc(own, full)
				return len(own) == 0
			})
		}
		own = map[string]*budget{}
		b.by[d.owner] = own
	}
	// A caller's many budgets of calls are full again after a moment.
	if n := len(own); n >= maxBudgets || n > 0 && n%sweepEvery == 0 {
		if maps.DeleteFunc(own, full); len(own) >= maxBudgets {
			clear(own)
		}
	}
	made := &budget{rate.NewLimiter(rate.Limit(float64(d.limit.Calls)/d.limit.Per.Seconds()), d.limit.Calls), d.limit}
	own[d.key] = made
	return made.limiter
}

// looping refuses a call that its caller has made too often in this very form.
// args are nil when the arguments make no sense. The agent's reason does not
// make it another call.
func (g *Gate) looping(c *call, args map[string]any) *policy.Decision {
	limits := c.policy.CallLimits(&c.Principal, c.Tool)
	if len(limits) == 0 {
		return nil
	}
	form := c.RawArgs
	if args != nil {
		args = maps.Clone(args)
		delete(args, "reason")
		if canonical, err := action.Canonical(args); err == nil {
			form = canonical
		}
	}
	sum := sha256.Sum256(form)
	var all []draw
	for _, limit := range limits {
		if !limit.Shadow {
			all = append(all, draw{limit: limit, owner: c.Principal.Key() + "\ncalls", key: limit.Name + "\n" + c.Tool + "\n" + string(sum[:]), n: 1})
		}
	}
	failed, wait := g.budgets.take(all, g.Now(), false)
	if failed == nil {
		return nil
	}
	return overdrawn(failed, wait, c.policy.Digest())
}

// exhausted says that a call has no chance for want of budget, before anything
// is read for it. A question that is open already draws on nothing any more.
func (g *Gate) exhausted(c *call) *policy.Decision {
	failed, wait := g.budgets.take(enforced(draws(c)), g.Now(), true)
	if failed == nil {
		return nil
	}
	if was, err := g.Store.Question(c.questionKey()); err == nil && was != "" {
		if op, err := g.Store.Operation(was); err == nil && op.State.Open() {
			return nil
		}
	}
	return overdrawn(failed, wait, c.policy.Digest())
}

// limited draws on the budgets for a call that policy lets through.
func (g *Gate) limited(c *call, d policy.Decision) policy.Decision {
	all, now := draws(c), g.Now()
	watched := slices.DeleteFunc(slices.Clone(all), func(d draw) bool { return !d.limit.Shadow })
	if failed, wait := g.budgets.take(watched, now, false); failed != nil {
		over := overdrawn(failed, wait, d.Digest)
		d.Shadow = &policy.Shadow{Effect: over.Effect, Rules: over.Rules, Reason: over.Reason}
	}
	if failed, wait := g.budgets.take(enforced(all), now, false); failed != nil {
		return *overdrawn(failed, wait, d.Digest)
	}
	return d
}

func enforced(all []draw) []draw {
	return slices.DeleteFunc(slices.Clone(all), func(d draw) bool { return d.limit.Shadow })
}

// overdrawn is the refusal of a call by a limit.
func overdrawn(d *draw, wait time.Duration, digest string) *policy.Decision {
	what := "requests"
	if d.limit.By == policy.ByCall {
		what = "identical calls"
	}
	text := fmt.Sprintf("limit %s: at most %d %s at once, and as many again over %s", d.limit.Name, d.limit.Calls, what, d.limit.Per)
	switch {
	case wait > 0:
		text += fmt.Sprintf("; there is room again in %s", wait)
	case d.n > d.limit.Calls:
		text += fmt.Sprintf(", and this call alone is %d", d.n)
	}
	if d.limit.Message != "" {
		text += ". " + d.limit.Message
	}
	return &policy.Decision{Effect: policy.Deny, Rules: []string{d.limit.Name}, Reason: text, Digest: digest}
}
