package gate

import (
	"context"
	"fmt"

	"countersign/action"
	"countersign/policy"
)

// settle decides, and reads from the clusters what the decision hangs on and
// nothing else. A non-nil before is called once, before the first request.
func (g *Gate) settle(ctx context.Context, set *policy.Set, op string, c *policy.Call, before func() error) (policy.Decision, error) {
	for {
		d := g.decide(set, c)
		needs, why := c.Next(d)
		if needs == 0 {
			return d, nil
		}
		if before != nil {
			if err := before(); err != nil {
				return d, err
			}
			before = nil
		}
		if err := g.look(ctx, op, c, needs); err != nil {
			if why != policy.ToWatch {
				return d, err
			}
			// What is only watched must not refuse anything.
			d.Shadow = &policy.Shadow{Reason: "could not be decided: " + needs.String() + " could not be read"}
			return d, nil
		}
	}
}

// look reads what is needed of every Action, before any is sent.
func (g *Gate) look(ctx context.Context, op string, c *policy.Call, needs policy.Need) error {
	if needs&policy.NeedNamespace != 0 {
		namespaces, err := g.namespaces(ctx, c.Principal, op, c.Plan)
		if err != nil {
			return err
		}
		c.Namespaces = namespaces
	}
	if needs&policy.NeedPreview != 0 {
		previews, err := g.preview(ctx, c.Principal, op, c.Plan)
		if err != nil {
			return err
		}
		c.Previews = previews
	}
	return nil
}

func (g *Gate) namespaces(ctx context.Context, as *action.Principal, op string, plan action.Plan) ([]map[string]any, error) {
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
			object, err = g.Cluster.Namespace(ctx, as, k.cluster, k.name, auditID(op))
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

func (g *Gate) preview(ctx context.Context, as *action.Principal, op string, plan action.Plan) ([]action.Preview, error) {
	previews := make([]action.Preview, len(plan.Actions))
	for i, a := range plan.Actions {
		if a.ReadOnly() {
			continue // nothing would change; conditions on it see no object
		}
		ctx, cancel := context.WithTimeout(ctx, g.RequestTimeout)
		preview, err := g.Cluster.Preview(ctx, as, a, func() string { return auditID(op) })
		cancel()
		if err != nil {
			return nil, refusedOne(plan, a, "previewing ", err)
		}
		previews[i] = preview
	}
	return previews, nil
}
