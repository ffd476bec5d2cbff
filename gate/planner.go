package gate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"countersign/action"
	"countersign/audit"
	"countersign/policy"
	"countersign/tools"
)

// planner is what a tool asks while it plans. Each of its requests goes the way
// of an allowed read: decided, on record while it runs, and held back until the
// record is durable.
type planner struct {
	g  *Gate
	c  *call
	mu sync.Mutex // kubectl's code may ask for several things at once
}

// reading is what a call has asked for while it was planned.
type reading struct {
	// recorded says that the intent is on disk.
	recorded bool
	actions  []audit.Action
	// left are the requests that were denied, and not sent.
	left []action.Action
	// broken is why the log could not take a record.
	broken error
}

// deniedRead is a read that policy does not allow. kubectl's code takes it for
// what RBAC would have said.
type deniedRead struct{ decision policy.Decision }

func (d *deniedRead) Error() string { return "policy: " + d.decision.Reason }

func (d *deniedRead) Unwrap() error {
	return &APIError{Code: http.StatusForbidden, Reason: string(metav1.StatusReasonForbidden), Message: d.Error()}
}

// Resolve implements tools.Resolver.
func (p *planner) Resolve(ctx context.Context, cluster, apiVersion, kind string) (action.Resource, error) {
	return p.g.Cluster.Resolve(ctx, cluster, apiVersion, kind)
}

// Served implements tools.Reader.
func (p *planner) Served(ctx context.Context, cluster string) (tools.Served, error) {
	if d, could := p.c.policy.CouldIn(cluster, &p.c.Principal, p.c.Tool, p.c.tool.Scopes); !could {
		return tools.Served{}, fmt.Errorf("%w: %s", tools.ErrNothingAllowed, d.Reason)
	}
	return p.g.Cluster.Served(ctx, cluster)
}

// Now implements tools.Reader.
func (p *planner) Now() time.Time { return p.c.start }

// Kubectl implements tools.Reader.
func (p *planner) Kubectl(ctx context.Context, cluster string) tools.Kubectl {
	return p.g.Cluster.Kubectl(ctx, cluster, p.Read)
}

// Read implements tools.Reader.
func (p *planner) Read(ctx context.Context, a action.Action) (tools.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.c
	if err := c.tool.MayRead(a); err != nil {
		return tools.Response{}, err
	}
	decision, err := p.allowed(ctx, a)
	if err != nil {
		return tools.Response{}, err
	}
	plan := action.Plan{Tool: c.Tool, Actions: []action.Action{a}}
	ids := newAuditIDs(c.op, 1)
	results, err, broken := p.g.sendRead(ctx, &c.Principal, plan, ids, append(p.intent(), p.g.decidedRead(c, plan, ids, decision)))
	if broken != nil {
		c.broken = broken
		return tools.Response{}, broken
	}
	c.recorded = true
	sent := recordActions(plan, ids, results)[0]
	var answered *APIError
	if errors.As(err, &answered) {
		sent.Code = answered.Code
	}
	c.actions = append(c.actions, sent)
	if err != nil {
		return tools.Response{}, err
	}
	return responses(plan, results)[0], nil
}

// intent is the record of the call, until it is stored.
func (p *planner) intent() []Entry {
	if p.c.recorded {
		return nil
	}
	return []Entry{p.g.intentEntry(p.c)}
}

// record stores the intent, before something is asked that has no record of its own.
func (p *planner) record() error {
	if p.c.recorded || p.c.broken != nil {
		return p.c.broken
	}
	if p.c.broken = p.g.commit(Batch{Entries: p.intent()}); p.c.broken == nil {
		p.c.recorded = true
	}
	return p.c.broken
}

// allowed decides one read, which policy must allow outright: people are asked
// about a whole call, and this one is not known yet.
func (p *planner) allowed(ctx context.Context, a action.Action) (policy.Decision, error) {
	c := p.c
	if c.broken != nil {
		return policy.Decision{}, c.broken
	}
	one := *c
	one.Plan = action.Plan{Tool: c.Tool, Actions: []action.Action{a}}
	asked := policy.Call{Principal: &c.Principal, Plan: one.Plan, Args: c.Args, Now: p.g.Now()}
	d := p.g.decide(c.policy, &asked)
	if d.Needs != 0 {
		if err := p.record(); err != nil {
			return d, err
		}
		var err error
		if d, err = p.g.settle(ctx, c.policy, c.op, &asked, nil); err != nil {
			return d, err
		}
	}
	switch d.Effect {
	case policy.Allow:
		d = p.g.limited(&one, d)
	case policy.RequireApproval:
		d.Effect = policy.Deny
		d.Reason = fmt.Sprintf("%s needs an approval, which %s cannot ask for on its way; get_resource and list_resources can (%s)", a, c.Tool, d.Reason)
	}
	if d.Effect != policy.Allow {
		c.left = append(c.left, a)
		return d, &deniedRead{d}
	}
	return d, nil
}

// Verdict implements tools.Reader.
func (p *planner) Verdict(tool string, a action.Action) tools.Verdict {
	return verdict(p.g.decide(p.c.policy, &policy.Call{
		Principal: &p.c.Principal, Plan: action.Plan{Tool: tool, Actions: []action.Action{a}}, Now: p.g.Now(),
	}))
}

func verdict(d policy.Decision) tools.Verdict {
	v := tools.Verdict{Effect: string(d.Effect), Rules: d.Rules, Reason: d.Reason}
	if d.Needs != 0 {
		v.Effect = ""
	}
	for _, a := range d.Approvals {
		v.Approvers = append(v.Approvers, fmt.Sprintf("%d of %s", a.Count, strings.Join(a.Approvers, " or ")))
	}
	return v
}

// Forecast implements tools.Reader. The API server is asked only for a change
// that policy does not deny by what it is: a dry run tells much, and a webhook sees it.
func (p *planner) Forecast(ctx context.Context, tool string, a action.Action) (tools.Forecast, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.c
	if (action.Plan{Actions: []action.Action{a}}).Secret() {
		return tools.Forecast{}, tools.BadArgument("Secrets are not compared: whether a guess differs would tell whether it is right. Leave them out")
	}
	get := action.Action{Cluster: a.Cluster, Verb: action.Get, Resource: a.Resource, Namespace: a.Namespace, Name: a.Name}
	if err := c.tool.MayRead(get); err != nil {
		return tools.Forecast{}, err
	}
	if _, err := p.allowed(ctx, get); err != nil {
		return tools.Forecast{}, err
	}
	asked := policy.Call{Principal: &c.Principal, Plan: action.Plan{Tool: tool, Actions: []action.Action{a}}, Now: p.g.Now()}
	if d := p.g.decide(c.policy, &asked); d.Needs == 0 && d.Effect == policy.Deny {
		return tools.Forecast{Verdict: verdict(d)}, nil
	}
	if err := p.record(); err != nil {
		return tools.Forecast{}, err
	}
	d, err := p.g.settle(ctx, c.policy, c.op, &asked, nil)
	if err == nil && asked.Previews == nil && d.Effect != policy.Deny {
		err = p.g.look(ctx, c.op, &asked, policy.NeedPreview)
	}
	if err != nil || asked.Previews == nil {
		return tools.Forecast{Verdict: verdict(d)}, err
	}
	return tools.Forecast{Verdict: verdict(d), Asked: true, Diff: audit.MaskDiff(a, asked.Previews[0])}, nil
}

// unplanned answers a call whose plan could not be made.
func (g *Gate) unplanned(c *call, err error) Result {
	var denied *deniedRead
	switch {
	case c.broken != nil:
		return g.unrecorded(c, c.broken)
	case errors.As(err, &denied):
		return g.deny(c, denied.decision)
	case c.recorded:
		if broken := g.commit(Batch{Entries: []Entry{g.readOutcome(c, err)}}); broken != nil {
			return g.unrecorded(c, broken)
		}
		return failed(c.op, err)
	}
	return g.malformed(c, err)
}

// answer gives out what a tool has found while it planned.
func (g *Gate) answer(c *call) Result {
	if !c.recorded {
		if err := g.commit(Batch{Entries: []Entry{g.intentEntry(c)}}); err != nil {
			return g.unrecorded(c, err)
		}
	}
	g.later(c.op, g.readOutcome(c, nil))
	text := c.Answer
	if len(c.left) > 0 {
		var left []string
		for _, a := range c.left {
			left = append(left, a.String())
		}
		slices.Sort(left)
		left = slices.Compact(left)
		text = strings.TrimSuffix(text, "\n") + "\n\nLeft out, because policy does not allow it: " + strings.Join(left, ", ") + ".\n"
	}
	return Result{Status: Succeeded, Op: c.op, Data: audit.MaskText(text)}
}

// readOutcome tells how a call ended that did nothing but read while it was planned.
func (g *Gate) readOutcome(c *call, err error) Entry {
	e := g.outcomeEntry(c.op, c.Principal, c.Session, c.Tool, action.Plan{}, nil, nil, err, c.start)
	e.Record.Actions = append(c.actions, c.notSent()...)
	return e
}

// notSent are the requests that policy denied, as records tell them: without an Audit-ID.
func (r *reading) notSent() []audit.Action {
	out := recordActions(action.Plan{Actions: r.left}, nil, nil)
	for i := range out {
		out[i].Code = http.StatusForbidden
	}
	return out
}
