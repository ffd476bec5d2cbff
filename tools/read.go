package tools

import (
	"context"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"countersign/action"
	"countersign/audit"
)

// Limits of one answer. An agent's context is small, and a caller can always
// narrow or go on.
const (
	defaultItems = 100
	maxItems     = 500
	defaultLines = 100
	maxLines     = 5000
	maxBytes     = 32 << 10
	// maxFetched bounds what is read of whole objects to show fields of them.
	maxFetched = 32 << 20
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
		}), checkSelectors(in.LabelSelector, "")
	}, renderTable)
}

type listResourcesInput struct {
	Kind          string   `json:"kind" jsonschema:"kind, plural or short name, such as Deployment, deploy or certificates.cert-manager.io"`
	Namespace     string   `json:"namespace,omitempty"`
	AllNamespaces bool     `json:"all_namespaces,omitempty" jsonschema:"list over every namespace instead of one"`
	LabelSelector string   `json:"label_selector,omitempty" jsonschema:"such as app=web,tier!=cache"`
	FieldSelector string   `json:"field_selector,omitempty" jsonschema:"such as status.phase=Running"`
	Fields        []string `json:"fields,omitempty"`
	Limit         int64    `json:"limit,omitempty" jsonschema:"at most this many (default 100)"`
	Continue      string   `json:"continue,omitempty" jsonschema:"handle from an earlier answer"`
}

func listResources() *Tool {
	return define(Tool{
		Name:        "list_resources",
		Title:       "List resources",
		Description: "Lists objects of one kind as a table, as kubectl get does. Says whether there are more, and how to go on.",
		Scopes:      []action.Scope{{Verbs: []string{action.List}}},
	}, func(s *jsonschema.Schema) {
		limitRange(s)
		fieldsArgument(s)
	}, func(ctx context.Context, r Reader, cluster string, in listResourcesInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		if err := checkWhere(resource, in.Namespace, in.AllNamespaces); err != nil {
			return Call{}, err
		}
		options, err := withFields(action.Options{
			Table: true, LabelSelector: in.LabelSelector, FieldSelector: in.FieldSelector, Limit: itemLimit(in.Limit), Continue: in.Continue,
		}, in.Fields)
		if err != nil {
			return Call{}, err
		}
		if options.Fields != nil {
			options.TailBytes = maxFetched
		}
		return read(action.Action{Verb: action.List, Resource: resource, Namespace: in.Namespace, Options: options}), checkSelectors(in.LabelSelector, in.FieldSelector)
	}, renderList)
}

// checkWhere refuses a list that does not say of which namespaces, or says it twice.
func checkWhere(resource action.Resource, namespace string, all bool) error {
	switch {
	case all && namespace != "":
		return BadArgument("give either namespace or all_namespaces, not both")
	case resource.Namespaced && !all && namespace == "":
		return BadArgument("%s live in namespaces: give namespace, or all_namespaces: true", resource.GroupResource())
	case !resource.Namespaced && namespace != "":
		return BadArgument("%s do not live in namespaces: leave namespace out", resource.GroupResource())
	}
	return nil
}

// checkSelectors refuses a selector that does not parse, in words that show how
// one does. By which fields a kind can be selected only the API server knows.
func checkSelectors(labelSelector, fieldSelector string) error {
	if _, err := labels.Parse(labelSelector); err != nil {
		return BadArgument("label_selector %.100q does not parse: write it as app=web,tier!=cache or tier in (web,api),!legacy", labelSelector)
	}
	if _, err := fields.ParseSelector(fieldSelector); err != nil {
		return BadArgument("field_selector %.100q does not parse: write it as status.phase=Running,spec.nodeName!=node-1", fieldSelector)
	}
	return nil
}

type getResourceInput struct {
	Kind      string   `json:"kind" jsonschema:"kind, plural or short name"`
	Name      string   `json:"name"`
	Namespace string   `json:"namespace,omitempty"`
	Fields    []string `json:"fields,omitempty"`
}

func getResource() *Tool {
	return define(Tool{
		Name:        "get_resource",
		Title:       "Get one resource",
		Description: "Shows one object as YAML, without managedFields. Values of Secrets are masked.",
		Scopes:      readAnything,
	}, fieldsArgument, func(ctx context.Context, r Reader, cluster string, in getResourceInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		options, err := withFields(action.Options{}, in.Fields)
		if err != nil {
			return Call{}, err
		}
		a := action.Action{Verb: action.Get, Resource: resource, Namespace: in.Namespace, Name: in.Name, Options: options}
		return read(a), checkTarget(a)
	}, renderObject)
}

type describeResourceInput struct {
	Kind      string `json:"kind" jsonschema:"kind, plural or short name"`
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

// follow is what a tool asks for that goes from one object to others.
var follow = []action.Scope{{Verbs: []string{action.Get}}, {Verbs: []string{action.List}}}

func describeResource() *Tool {
	return define(Tool{
		Name:        "describe_resource",
		Title:       "Describe one resource",
		Description: "Describes one object, what belongs to it and its events, as kubectl describe does.",
		Scopes:      follow,
		Reads:       follow,
	}, nil, func(ctx context.Context, r Reader, cluster string, in describeResourceInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		if err := checkTarget(action.Action{Resource: resource, Namespace: in.Namespace, Name: in.Name}); err != nil {
			return Call{}, err
		}
		text, err := r.Kubectl(ctx, cluster).Describe(resource, in.Namespace, in.Name)
		if resource.GroupResource() == "secrets" {
			text = strings.ReplaceAll(text, ":  0 bytes", ":  "+audit.Masked) // its values were taken out before
		}
		return Call{Answer: cutEnd(audit.MaskText(text), "get_resource with fields, or list_events")}, err
	}, nil)
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
