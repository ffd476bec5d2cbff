package gate

import (
	"context"
	"fmt"

	"countersign/action"
	"countersign/policy"
)

// seen is what was read from the clusters for a decision, nil where it was not.
type seen struct {
	previews   []action.Preview
	namespaces []map[string]any // one for each Action; nil where there is none
}

// decide asks policy about every Action of the plan; the strictest answer counts.
func (g *Gate) decide(set *policy.Set, p *action.Principal, plan action.Plan, args map[string]any, s *seen) policy.Decision {
	now := g.Now()
	decisions := make([]policy.Decision, len(plan.Actions))
	for i := range plan.Actions {
		req := policy.Request{Principal: p, Tool: plan.Tool, Args: args, Action: &plan.Actions[i], Now: now}
		if s.previews != nil {
			req.Preview = &s.previews[i]
		}
		if s.namespaces != nil {
			req.Namespace, req.NamespaceRead = s.namespaces[i], true
		}
		decisions[i] = set.Decide(req)
	}
	d := policy.Strictest(decisions)
	if d.Effect == "" && d.Needs == 0 { // a plan without Actions is nothing that anybody allowed
		d = policy.Decision{Effect: policy.Deny, Reason: "the call would do nothing", Digest: set.Digest()}
	}
	return d
}

// settle decides, and reads from the clusters what the decision hangs on and
// nothing else. What approvers are asked about is always previewed, and so are
// several changes, lest the second is refused when the first is done. A non-nil
// before is called once, before the first request.
func (g *Gate) settle(ctx context.Context, set *policy.Set, op string, p *action.Principal, plan action.Plan, args map[string]any, s *seen, before func() error) (policy.Decision, error) {
	for {
		d := g.decide(set, p, plan, args, s)
		needs, forShadow := d.Needs, false
		if needs == 0 && s.previews == nil && (d.Effect == policy.RequireApproval || d.Effect == policy.Allow && changes(plan) > 1) {
			needs = policy.NeedPreview
		}
		if needs == 0 && d.Effect != policy.Deny && d.ShadowNeeds != 0 {
			needs, forShadow = d.ShadowNeeds, true
		}
		if needs == 0 {
			return d, nil
		}
		if before != nil {
			if err := before(); err != nil {
				return d, err
			}
			before = nil
		}
		if err := g.look(ctx, op, plan, s, needs); err != nil {
			if !forShadow {
				return d, err
			}
			// What is only watched must not refuse anything.
			d.Shadow = &policy.Shadow{Reason: "could not be decided: " + needs.String() + " could not be read"}
			return d, nil
		}
	}
}

func changes(plan action.Plan) (n int) {
	for _, a := range plan.Actions {
		if !a.ReadOnly() {
			n++
		}
	}
	return n
}

// look reads what is needed of every Action, before any is sent.
func (g *Gate) look(ctx context.Context, op string, plan action.Plan, s *seen, needs policy.Need) error {
	if needs&policy.NeedNamespace != 0 {
		namespaces, err := g.namespaces(ctx, op, plan)
		if err != nil {
			return err
		}
		s.namespaces = namespaces
	}
	if needs&policy.NeedPreview != 0 {
		previews, err := g.preview(ctx, op, plan)
		if err != nil {
			return err
		}
		s.previews = previews
	}
	return nil
}

func (g *Gate) namespaces(ctx context.Context, op string, plan action.Plan) ([]map[string]any, error) {
	type key struct{ cluster, name string }
	read := map[key]map[string]any{}
	out := make([]map[string]any, len(plan.Actions))
	for i := range plan.Actions {
		k := key{plan.Actions[i].Cluster, policy.NamespaceOf(&plan.Actions[i])}
		if k.name == "" {
			continue
		}
		object, ok := read[k]
		if !ok {
			ctx, cancel := context.WithTimeout(ctx, g.RequestTimeout)
			var err error
			object, err = g.Cluster.Namespace(ctx, k.cluster, k.name, auditID(op))
			cancel()
			if err != nil {
				return nil, fmt.Errorf("reading namespace %s: %w", k.name, err)
			}
			read[k] = object
		}
		out[i] = object
	}
	return out, nil
}

func (g *Gate) preview(ctx context.Context, op string, plan action.Plan) ([]action.Preview, error) {
	previews := make([]action.Preview, len(plan.Actions))
	for i, a := range plan.Actions {
		if a.ReadOnly() {
			continue // nothing would change; conditions on it see no object
		}
		ctx, cancel := context.WithTimeout(ctx, g.RequestTimeout)
		preview, err := g.Cluster.Preview(ctx, a, func() string { return auditID(op) })
		cancel()
		if err != nil {
			return nil, fmt.Errorf("previewing %s: %w", a, err)
		}
		previews[i] = preview
	}
	return previews, nil
}
