package tools

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"countersign/action"
)

// discovery are the scopes of tools that ask what there is: who may read
// something may ask. They make no Action.
var discovery = []action.Scope{{Verbs: []string{action.Get}}, {Verbs: []string{action.List}}}

// servedTimeout bounds how long list_clusters waits for one cluster.
const servedTimeout = 5 * time.Second

type listClustersInput struct{}

func listClusters(clusters []string) *Tool {
	return define(Tool{
		Name:        "list_clusters",
		Title:       "List clusters",
		Description: "Lists the clusters and their versions.",
		Scopes:      discovery,
		everywhere:  true,
	}, nil, func(ctx context.Context, r Reader, _ string, _ listClustersInput) (Call, error) {
		states := make([]string, len(clusters))
		var asking sync.WaitGroup
		for i, cluster := range clusters {
			asking.Go(func() {
				bounded, cancel := context.WithTimeout(ctx, servedTimeout)
				defer cancel()
				served, err := r.Served(bounded, cluster)
				switch {
				case errors.Is(err, ErrNothingAllowed):
					states[i] = ErrNothingAllowed.Error()
				case bounded.Err() != nil:
					states[i] = fmt.Sprintf("unreachable: no answer within %s", servedTimeout)
				case err != nil: // what exactly went wrong is for the operators
					states[i] = "unreachable: it cannot be asked what it serves"
				default:
					states[i] = served.Version
				}
			})
		}
		asking.Wait()
		var rows rows
		rows.add([]string{"NAME", "VERSION"})
		for i, cluster := range clusters {
			rows.add([]string{cluster, cellText(states[i])})
		}
		text, _ := rows.table()
		return Call{Answer: text}, nil
	}, nil)
}

type listAPIResourcesInput struct {
	Group      *string `json:"group,omitempty" jsonschema:"such as apps; empty for the core group"`
	Namespaced *bool   `json:"namespaced,omitempty"`
	Match      string  `json:"match,omitempty" jsonschema:"part of a name, short name or kind"`
}

func listAPIResources() *Tool {
	return define(Tool{
		Name:        "list_api_resources",
		Title:       "List API resources",
		Description: "Lists the kinds that the cluster serves.",
		Scopes:      discovery,
	}, func(s *jsonschema.Schema) {
		s.Properties["group"].Types, s.Properties["group"].Type = nil, "string"
		s.Properties["namespaced"].Types, s.Properties["namespaced"].Type = nil, "boolean"
	}, func(ctx context.Context, r Reader, cluster string, in listAPIResourcesInput) (Call, error) {
		served, err := r.Served(ctx, cluster)
		if err != nil {
			return Call{}, err
		}
		return Call{Answer: kindsText(served.Kinds, in)}, nil
	}, nil)
}

func kindsText(kinds []Kind, in listAPIResourcesInput) string {
	match := strings.ToLower(in.Match)
	fits := func(k Kind) bool {
		names := append([]string{k.GroupResource(), strings.ToLower(k.Kind)}, k.ShortNames...)
		return (in.Group == nil || *in.Group == k.Group) && (in.Namespaced == nil || *in.Namespaced == k.Namespaced) &&
			slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, match) })
	}
	var rows rows
	found := 0
	rows.add([]string{"NAME", "SHORT", "APIVERSION", "NAMESPACED", "KIND"})
	for _, k := range kinds {
		if fits(k) {
			found++
			rows.add([]string{k.Resource.Resource, strings.Join(k.ShortNames, ","), strings.TrimPrefix(k.Group+"/"+k.Version, "/"), fmt.Sprint(k.Namespaced), k.Kind})
		}
	}
	if found == 0 {
		return fmt.Sprintf("None of the %d kinds that are served fits.", len(kinds))
	}
	text, shown := rows.table()
	if shown < found {
		text += fmt.Sprintf("The first %d of %d: narrow with group or match.\n", shown, found)
	}
	return text
}

// maxExplained bounds the documentation of a kind.
const maxExplained = 16 << 10

var inBrackets = regexp.MustCompile(`\[[^\]]*\]`)

type explainResourceInput struct {
	Kind      string `json:"kind"`
	Field     string `json:"field,omitempty" jsonschema:"such as spec.template.spec"`
	Recursive bool   `json:"recursive,omitempty"`
}

func explainResource() *Tool {
	return define(Tool{
		Name:        "explain_resource",
		Title:       "Explain a kind",
		Description: "Documents the fields of a kind, as kubectl explain does.",
		Scopes:      discovery,
	}, nil, func(ctx context.Context, r Reader, cluster string, in explainResourceInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		var path []string
		// As a path of fields elsewhere has it: which item of a list is all the same.
		if field := strings.Trim(inBrackets.ReplaceAllString(in.Field, ""), "."); field != "" {
			path = strings.Split(field, ".")
		}
		text, err := r.Kubectl(ctx, cluster).Explain(resource, path, in.Recursive)
		return Call{Answer: cutAt(text, maxExplained, "name a field, such as spec, or leave recursive out")}, err
	}, nil)
}

type checkAccessInput struct {
	Verb        string `json:"verb"`
	Kind        string `json:"kind"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
	Subresource string `json:"subresource,omitempty" jsonschema:"such as log, scale, exec or eviction"`
	Tool        string `json:"tool,omitempty" jsonschema:"as which tool; default is the usual one for the verb"`
}

// checkAccess is told of all tools when it is asked, being one of them.
func checkAccess(all func() []*Tool) *Tool {
	return define(Tool{
		Name:        "check_access",
		Title:       "Check access",
		Description: "Says whether policy would allow a request. Sends nothing.",
		Scopes:      discovery,
	}, func(s *jsonschema.Schema) {
		oneOf(s, "verb", "get", "list", "create", "patch", "apply", "delete")
	}, func(ctx context.Context, r Reader, cluster string, in checkAccessInput) (Call, error) {
		resource, err := r.Resolve(ctx, cluster, "", in.Kind)
		if err != nil {
			return Call{}, err
		}
		a := action.Action{Cluster: cluster, Verb: in.Verb, Resource: resource, Subresource: in.Subresource, Namespace: in.Namespace, Name: in.Name}
		switch in.Verb {
		case action.Patch:
			a.Options.PatchType = action.MergePatch
		case "apply":
			a.Verb, a.Options.PatchType = action.Patch, action.ApplyPatch
		}
		// A list over no namespace is one over all; nothing else is.
		if err := checkNamespace(resource, in.Namespace); err != nil && (in.Verb != action.List || in.Namespace != "") {
			return Call{}, err
		}
		if err := checkNames(a); err != nil {
			return Call{}, err
		}
		as, err := toolFor(all(), a, in.Tool)
		if err != nil {
			return Call{}, err
		}
		a.Body = standIn(a)
		return Call{Answer: accessText(as, a, r.Verdict(as, a))}, nil
	}, nil)
}

// standIn is a body that says no more than which object it is about. A change
// without any would count as one of the whole object, which is more than most are.
func standIn(a action.Action) any {
	switch {
	case a.ReadOnly(), a.Verb == action.Delete, a.Subresource == action.Exec:
		return nil
	case a.Subresource == action.Eviction:
		return eviction(PodRef{Namespace: a.Namespace, Name: a.Name}, nil).Body
	}
	body := map[string]any{"metadata": map[string]any{"name": a.Name}}
	if a.Verb == action.Create || a.Options.PatchType == action.ApplyPatch {
		body["apiVersion"], body["kind"] = strings.TrimPrefix(a.Resource.Group+"/"+a.Resource.Version, "/"), a.Resource.Kind
	}
	return body
}

// toolFor is the tool by which a request would be made: the one that is named,
// or of those that can make it the first that says most exactly what it does.
func toolFor(all []*Tool, a action.Action, named string) (string, error) {
	can := func(t *Tool) bool {
		return slices.ContainsFunc(t.Scopes, func(s action.Scope) bool { return s.Covers(a) })
	}
	if named != "" {
		i := slices.IndexFunc(all, func(t *Tool) bool { return t.Name == named })
		switch {
		case i < 0:
			return "", BadArgument("there is no tool %.100q", named)
		case !can(all[i]):
			return "", BadArgument("%s never sends %s: leave tool out to ask about another", named, a)
		}
		return named, nil
	}
	usual := map[string]string{
		action.Get: "get_resource", action.List: "list_resources", action.Create: "create_resource", action.Patch: "patch_resource", action.Delete: "delete_resource",
	}[a.Verb]
	switch {
	case a.Options.PatchType == action.ApplyPatch:
		usual = "apply_manifest"
	case a.Subresource == action.Eviction: // draining a node is more than this
		usual = "evict_pod"
	}
	for _, exact := range []bool{false, true} {
		for _, t := range all {
			if can(t) && (exact || t.Name == usual) {
				return t.Name, nil
			}
		}
	}
	return "", BadArgument("no tool sends %s", a)
}

func accessText(tool string, a action.Action, v Verdict) string {
	var text string
	switch v.Effect {
	case "allow":
		text = "Allowed"
	case "deny":
		text = "Denied"
	case "require_approval":
		text = "Asks for approval"
		if len(v.Approvers) > 0 {
			text += " by " + strings.Join(v.Approvers, " and ")
		}
	default:
		text = "Not denied so far: it hangs on what the object or its namespace holds, which is looked at when the call is made"
	}
	where := ""
	if a.Verb == action.List && a.Resource.Namespaced && a.Namespace == "" {
		where = " in all namespaces"
	}
	text += fmt.Sprintf(": %s%s with %s.\n", a, where, tool)
	if len(v.Rules) > 0 {
		text += "Rules: " + strings.Join(v.Rules, ", ") + "\n"
	}
	if v.Reason != "" {
		text += "Reason: " + v.Reason + "\n"
	}
	if a.Name == "" && a.Verb != action.List {
		text += "No name is given, so this is about every name.\n"
	}
	if a.Body != nil && a.Subresource != action.Eviction {
		text += "What the change contains was not looked at; diff_manifest does that.\n"
	}
	return text + "This is policy alone: the cluster's own RBAC, quotas and admission were not asked.\n"
}
