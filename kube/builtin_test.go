package kube

import (
	"context"
	"slices"
	"strings"
	"testing"

	"countersign/action"
)

// Every spelling that a cluster takes is taken without one, and gives the same.
func TestBuiltinResolve(t *testing.T) {
	kinds := Builtin(action.Resource{Group: "example.com", Version: "v1", Resource: "widgets", Kind: "Widget", Namespaced: true})
	for _, row := range []struct{ apiVersion, kind, want string }{
		{"", "deployments", "apps/v1/deployments Deployment true"},
		{"", "deployment", "apps/v1/deployments Deployment true"},
		{"", "Deployment", "apps/v1/deployments Deployment true"},
		{"", "deploy", "apps/v1/deployments Deployment true"},
		{"", "deployments.apps", "apps/v1/deployments Deployment true"},
		{"", "deploy.apps", "apps/v1/deployments Deployment true"},
		{"", "deployments.v1.apps", "apps/v1/deployments Deployment true"},
		{"apps/v1", "Deployment", "apps/v1/deployments Deployment true"},
		{"", "ns", "v1/namespaces Namespace false"},
		{"v1", "Namespace", "v1/namespaces Namespace false"},
		{"", "events", "v1/events Event true"},
		{"", "events.events.k8s.io", "v1/events Event true"}, // one store
		{"", "crd", "apiextensions.k8s.io/v1/customresourcedefinitions CustomResourceDefinition false"},
		{"", "hpa", "autoscaling/v2/horizontalpodautoscalers HorizontalPodAutoscaler true"},
		{"", "widget", "example.com/v1/widgets Widget true"},
		{"", "Widgets.example.com", "example.com/v1/widgets Widget true"},
		{"example.com/v1", "Widget", "example.com/v1/widgets Widget true"},
	} {
		got, err := kinds.Resolve(context.Background(), "any", row.apiVersion, row.kind)
		scope := " false"
		if got.Namespaced {
			scope = " true"
		}
		if text := got.Path() + " " + got.Kind + scope; err != nil || text != row.want {
			t.Errorf("%s %s: got %s, %v; want %s", row.apiVersion, row.kind, text, err, row.want)
		}
	}
	for _, row := range []struct{ apiVersion, kind, want string }{
		{"", "deploymens", `Kubernetes itself has no kind "deploymens"; near it are deployments.apps`},
		{"", "zebra", `Kubernetes itself has no kind "zebra"`},
		{"apps/v1", "Widget", `Kubernetes itself has no kind "apps/v1 Widget"`},
		{"autoscaling/v1", "HorizontalPodAutoscaler", "write it as autoscaling/v2"},
		{"example.com/v2", "Widget", "write it as example.com/v1"},
		{"events.k8s.io/v1", "Event", "write it as v1 Event"},
		{"a/b/c", "Widget", `has no kind "a/b/c Widget"`},
		{"", "../secrets", "is not the name of a kind"},
	} {
		if _, err := kinds.Resolve(context.Background(), "any", row.apiVersion, row.kind); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s %s: got %v; want %s", row.apiVersion, row.kind, err, row.want)
		}
	}
}

func TestBuiltinNames(t *testing.T) {
	names := Builtin(action.Resource{Group: "example.com", Version: "v1", Resource: "widgets", Kind: "Widget"}).Names()
	for _, name := range []string{"pods", "deployments.apps", "customresourcedefinitions.apiextensions.k8s.io", "widgets.example.com"} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is missing", name)
		}
	}
	if len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
		t.Error("a name is there twice")
	}
	if slices.Contains(Builtin().Names(), "widgets.example.com") {
		t.Error("what one is given, the next has too")
	}
}

// The Go types are those whose tags say how lists are merged; a kind that has
// none there has none here.
func TestBuiltinStruct(t *testing.T) {
	kinds := Builtin()
	var missing []string
	for _, list := range kinds.served.discovery.(*written).lists {
		for _, r := range list.APIResources {
			if kinds.Struct(action.Resource{Group: r.Group, Version: r.Version, Kind: r.Kind}) == nil {
				missing = append(missing, r.Kind)
			}
		}
	}
	if want := []string{"APIService", "CustomResourceDefinition"}; !slices.Equal(missing, want) {
		t.Errorf("without a type: %v; want %v", missing, want)
	}
}
