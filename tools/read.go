package tools

import (
	"context"

	"github.com/google/jsonschema-go/jsonschema"

	"countersign/action"
)

// Limits of one answer. An agent's context is small, and a caller can always
// narrow or go on.
const (
	defaultItems = 100
	maxItems     = 500
	defaultLines = 100
	maxLines     = 5000
	maxBytes     = 32 << 10
)

var readAnything = []action.Scope{{Verbs: []string{action.Get}}}

type listNamespacesInput struct {
	LabelSelector string `json:"label_selector,omitempty" jsonschema:"such as team=shop"`
	Limit         int64  `json:"limit,omitempty" jsonschema:"at most this many (default 100)"`
	Continue      string `json:"continue,omitempty" jsonschema:"handle from an earlier answer"`
}

func listNamespaces() *Tool {
	return define(Tool{
		Name:        "list_namespaces",
		Title:       "List namespaces",
		Description: "Lists the namespaces of the cluster as a table.",
		Scopes:      []action.Scope{{Verbs: []string{action.List}, Resource: "namespaces"}},
	}, limitRange, func(_ context.Context, _ Reader, _ string, in listNamespacesInput) (Call, error) {
		return read(action.Action{
			Verb:     action.List,
			Resource: action.Resource{Version: "v1", Resource: "namespaces", Kind: "Namespace"},
			Options:  action.Options{Table: true, LabelSelector: in.LabelSelector, Limit: itemLimit(in.Limit), Continue: in.Continue},
		}), nil
	}, renderTable)
}

type listResourcesInput struct {
	Kind          string `json:"kind" jsonschema:"kind, plural or short name, such as Deployment, deploy or certificates.cert-manager.io"`
	Namespace     string `json:"namespace,omitempty"`
	AllNamespaces bool   `json:"all_namespaces,omitempty" jsonschema:"list over every namespace instead of one"`
	LabelSelector string `json:"label_selector,omitempty" jsonschema:"such as app=web,tier!=cache"`
	FieldSelector string `json:"field_selector,omitempty" jsonschema:"such as status.phase=Running"`
	Limit         int64  `json:"limit,omitempty" jsonschema:"at most this many (default 100)"`
	Continue      string `json:"continue,omitempty" jsonschema:"handle from an earlier answer"`
}

func listResources() *Tool {
	return define(Tool{
		Name:        "list_resources",
		Title:       "List resources",
		Description: "Lists objects of one kind as a table, as kubectl get does. Says how many there are and how to go on.",
		Scopes:      []action.Scope{{Verbs: []string{action.List}}},
	}, limitRange, func(ctx context.Context, r Reader, cluster string, in listResourcesInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		switch {
		case in.AllNamespaces && in.Namespace != "":
			return Call{}, BadArgument("give either namespace or all_namespaces, not both")
		case resource.Namespaced && !in.AllNamespaces && in.Namespace == "":
			return Call{}, BadArgument("%s live in namespaces: give namespace, or all_namespaces: true", resource.GroupResource())
		case !resource.Namespaced && in.Namespace != "":
			return Call{}, BadArgument("%s do not live in namespaces: leave namespace out", resource.GroupResource())
		}
		return read(action.Action{
			Verb: action.List, Resource: resource, Namespace: in.Namespace,
			Options: action.Options{Table: true, LabelSelector: in.LabelSelector, FieldSelector: in.FieldSelector, Limit: itemLimit(in.Limit), Continue: in.Continue},
		}), nil
	}, renderTable)
}

type getResourceInput struct {
	Kind      string `json:"kind" jsonschema:"kind, plural or short name"`
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

func getResource() *Tool {
	return define(Tool{
		Name:        "get_resource",
		Title:       "Get one resource",
		Description: "Shows one object as YAML, without managedFields. Values of Secrets are masked.",
		Scopes:      readAnything,
	}, nil, func(ctx context.Context, r Reader, cluster string, in getResourceInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		a := action.Action{Verb: action.Get, Resource: resource, Namespace: in.Namespace, Name: in.Name}
		return read(a), checkTarget(a)
	}, renderObject)
}

type getPodLogsInput struct {
	Namespace    string `json:"namespace"`
	Pod          string `json:"pod"`
	Container    string `json:"container,omitempty" jsonschema:"needed when the pod has several"`
	Previous     bool   `json:"previous,omitempty" jsonschema:"the container's previous run"`
	TailLines    int64  `json:"tail_lines,omitempty" jsonschema:"this many last lines (default 100)"`
	SinceSeconds int64  `json:"since_seconds,omitempty" jsonschema:"only newer than this"`
}

func getPodLogs() *Tool {
	return define(Tool{
		Name:        "get_pod_logs",
		Title:       "Get pod logs",
		Description: "Shows the last lines of a container's log.",
		Scopes:      []action.Scope{{Verbs: []string{action.Get}, Resource: "pods", Subresource: "log"}},
	}, func(s *jsonschema.Schema) {
		between(s, "tail_lines", 1, maxLines)
		between(s, "since_seconds", 1, 7*24*3600)
	}, func(_ context.Context, _ Reader, _ string, in getPodLogsInput) (Call, error) {
		if in.TailLines == 0 {
			in.TailLines = defaultLines
		}
		a := action.Action{
			Verb: action.Get, Resource: action.Resource{Version: "v1", Resource: "pods", Kind: "Pod", Namespaced: true},
			Subresource: "log", Namespace: in.Namespace, Name: in.Pod,
			Options: action.Options{Container: in.Container, Previous: in.Previous, TailLines: in.TailLines, SinceSeconds: in.SinceSeconds, TailBytes: maxBytes},
		}
		return read(a), checkTarget(a)
	}, renderLog)
}

func read(a action.Action) Call { return Call{Plan: action.Plan{Actions: []action.Action{a}}} }

func itemLimit(n int64) int64 {
	if n == 0 {
		return defaultItems
	}
	return n
}

func limitRange(s *jsonschema.Schema) { between(s, "limit", 1, maxItems) }

func between(s *jsonschema.Schema, argument string, low, high float64) {
	s.Properties[argument].Minimum, s.Properties[argument].Maximum = &low, &high
}
