package trial

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/policy"
	"countersign/tools"
)

// Kinds is what is known of kinds without a cluster.
type Kinds interface {
	tools.Resolver
	// Struct is a new value of the Go type of a kind, nil when there is none. Its
	// tags say how the lists of such an object are merged.
	Struct(action.Resource) any
}

// World is what stands in for a server: its policy, its tools and the kinds
// that its clusters serve.
type World struct {
	set      *policy.Set
	clusters []string
	tools    []*tools.Tool
	makes    func(extra ...action.Resource) Kinds
	kinds    Kinds // without extra ones
}

// New makes a World. clusters are those of the configuration; when there are
// none, a call may be about any. kinds knows Kubernetes' own kinds and those
// that it is given.
func New(set *policy.Set, clusters []string, kinds func(extra ...action.Resource) Kinds) *World {
	names := clusters
	if len(names) == 0 {
		names = []string{""}
	}
	return &World{set: set, clusters: clusters, tools: tools.All(names), makes: kinds, kinds: kinds()}
}

func (w *World) find(name string) *tools.Tool {
	for _, t := range w.tools {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Call is one tool call, and what there is when it comes.
type Call struct {
	Principal action.Principal
	// Cluster is empty for the only one, or the first.
	Cluster string
	Tool    string
	Args    []byte // JSON
	// Live are the objects that are there.
	Live []map[string]any
	// Results are what the API server would answer to the dry runs of the call's
	// requests, in their order; one that is nil is estimated. Without any, all are.
	Results []map[string]any
	// Namespaces are labels by namespace. A Namespace among Live counts as well;
	// all others are there without labels, except those of Absent.
	Namespaces map[string]map[string]string
	Absent     []string
	// Resources are kinds that are not Kubernetes' own.
	Resources []action.Resource
	Now       time.Time
}

// Failed is the decision on a call that cannot be understood, or whose dry run
// cannot be had; all others are policy's effects.
const Failed = "error"

// Answer is what became of a call.
type Answer struct {
	// Decision is allow, require_approval, deny or error.
	Decision string   `json:"decision"`
	Rules    []string `json:"rules,omitempty"`
	// Reason is what the caller is told, or what is wrong with the call.
	Reason string `json:"reason,omitempty"`
	// Policy is the whole decision, without an effect where there is an error.
	Policy policy.Decision `json:"-"`
}

func failed(err error) Answer { return Answer{Decision: Failed, Reason: err.Error()} }

func answered(d policy.Decision) Answer {
	return Answer{Decision: string(d.Effect), Rules: d.Rules, Reason: d.Reason, Policy: d}
}

// Decide answers as a server would, were the world as the call says.
func (w *World) Decide(ctx context.Context, c Call) Answer {
	r, answer := w.plan(ctx, c)
	if answer != nil {
		return *answer
	}
	return r.settle()
}

// run is a call on its way.
type run struct {
	*World
	Call
	kinds Kinds
	live  map[target]map[string]any
	asked policy.Call
}

// plan takes a call as far as its Plan. It is answered where it ends before;
// a Plan that could be made all the same is there for Explain.
func (w *World) plan(ctx context.Context, c Call) (*run, *Answer) {
	ended := func(a Answer) (*run, *Answer) { return nil, &a }
	tool := w.find(c.Tool)
	if tool == nil {
		return ended(failed(tools.BadArgument("there is no tool %q", c.Tool)))
	}
	cluster, raw, err := w.cluster(c, tool)
	if err != nil {
		return ended(failed(err))
	}
	args, err := tool.Decode(raw)
	if err != nil {
		return ended(failed(err))
	}
	refusal, could := w.set.Could(&c.Principal, tool.Name, tool.Scopes)
	r := &run{World: w, Call: c, kinds: w.kinds}
	if len(c.Resources) > 0 {
		r.kinds = w.makes(c.Resources...)
	}
	planned, err := tool.Plan(ctx, tools.Offline(r.kinds, c.Now), args)
	switch {
	case err != nil && !could:
		return ended(answered(refusal))
	case err != nil:
		return ended(failed(err))
	case planned.Operation != nil:
		return ended(Answer{Decision: string(policy.Allow), Reason: "policy is not asked about " + tool.Name + ": it is about the caller's own operations"})
	case planned.Answer != "":
		return ended(Answer{Decision: string(policy.Allow), Reason: tool.Name + " sends nothing to a cluster"})
	}
	r.asked = policy.Call{Principal: &r.Principal, Plan: planned.Plan, Args: planned.Args, Now: r.Now}
	for i := range r.asked.Plan.Actions {
		r.asked.Plan.Actions[i].Cluster = cluster
	}
	if r.live, err = r.index(ctx); err != nil {
		return ended(failed(err))
	}
	if !could {
		a := answered(refusal)
		return r, &a
	}
	return r, nil
}

// cluster says which cluster a call is about, and adds it to the arguments
// where the tools of this server take it.
func (w *World) cluster(c Call, tool *tools.Tool) (string, []byte, error) {
	if c.Cluster != "" && len(w.clusters) > 0 && !slices.Contains(w.clusters, c.Cluster) {
		return "", nil, tools.BadArgument("there is no cluster %q; the configuration has %s", c.Cluster, strings.Join(w.clusters, ", "))
	}
	cluster := c.Cluster
	if cluster == "" && len(w.clusters) > 0 {
		cluster = w.clusters[0]
	}
	if len(w.clusters) < 2 || len(tool.Scopes) == 0 {
		return cluster, c.Args, nil
	}
	var args map[string]any
	strict, err := kjson.UnmarshalStrict(c.Args, &args)
	if read := err == nil && len(strict) == 0; !read {
		return cluster, c.Args, nil // which Decode refuses, and says why
	}
	if args == nil {
		args = map[string]any{}
	}
	switch given, ok := args["cluster"].(string); {
	case ok && c.Cluster != "" && given != c.Cluster:
		return "", nil, tools.BadArgument("the arguments say cluster %q, and the case says %q: write it once", given, c.Cluster)
	case ok:
		return given, c.Args, nil
	}
	args["cluster"] = cluster
	raw, err := action.Canonical(args)
	return cluster, raw, err
}

// settle decides, and looks at what the decision hangs on and nothing else, in
// the rounds in which gate does.
func (r *run) settle() Answer {
	for {
		d := r.set.DecideCall(&r.asked)
		needs, why := r.asked.Next(d)
		if needs == 0 {
			return answered(d)
		}
		if err := r.look(needs); err != nil && why == policy.ToDecide {
			return failed(err)
		} else if err != nil {
			return answered(d) // a case need not say what is there for the approver's eyes
		}
	}
}

func (r *run) look(needs policy.Need) error {
	if needs&policy.NeedNamespace != 0 {
		r.lookNamespaces()
	}
	if needs&policy.NeedPreview != 0 {
		return r.lookPreviews()
	}
	return nil
}

func (r *run) lookNamespaces() {
	r.asked.Namespaces = make([]map[string]any, len(r.asked.Plan.Actions))
	for i := range r.asked.Plan.Actions {
		if name := policy.NamespaceOf(&r.asked.Plan.Actions[i]); name != "" {
			r.asked.Namespaces[i] = r.namespace(name)
		}
	}
}

func (r *run) lookPreviews() error {
	if n := len(r.Results); n != 0 && n != len(r.asked.Plan.Actions) {
		return fmt.Errorf("result has %d objects, and the call sends %d requests: give one for each, null for those that are to be estimated", n, len(r.asked.Plan.Actions))
	}
	previews := make([]action.Preview, len(r.asked.Plan.Actions))
	for i, a := range r.asked.Plan.Actions {
		if a.ReadOnly() {
			continue
		}
		var given map[string]any
		if len(r.Results) > 0 {
			given = r.Results[i]
		}
		preview, err := r.preview(a, given)
		if err != nil {
			return fmt.Errorf("previewing %s: %w", a, err)
		}
		previews[i] = preview
	}
	r.asked.Previews = previews
	return nil
}

// namespace is a Namespace as the API server would show it, nil when there is none.
func (r *run) namespace(name string) map[string]any {
	object := r.live[target{"namespaces", "", name}]
	if object == nil {
		if slices.Contains(r.Absent, name) {
			return nil
		}
		object = map[string]any{
			"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name},
			"spec": map[string]any{"finalizers": []any{"kubernetes"}}, "status": map[string]any{"phase": "Active"},
		}
	}
	meta := maps.Clone(object["metadata"].(map[string]any))
	labels, _ := meta["labels"].(map[string]any)
	if labels = maps.Clone(labels); labels == nil {
		labels = map[string]any{}
	}
	labels["kubernetes.io/metadata.name"] = name // which the API server sees to
	for key, value := range r.Namespaces[name] {
		labels[key] = value
	}
	meta["labels"] = labels
	object = maps.Clone(object)
	object["metadata"] = meta
	return object
}
