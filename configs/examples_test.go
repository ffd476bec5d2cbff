package configs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
	"countersign/policy"
)

// Every example that is shipped loads, with its policy, as it stands.
func TestExamplesLoad(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	loaded := map[string]bool{}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			c, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			dir, err := filepath.Rel(mustAbs(t, "."), mustAbs(t, c.Policy))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := policy.Load(os.DirFS(c.Policy), c.ApproverSets()); err != nil {
				t.Errorf("its policy in %s: %v", dir, err)
			}
			loaded[dir] = true
		})
	}
	folders, err := filepath.Glob("policy/*")
	if err != nil || len(folders) == 0 {
		t.Fatalf("no policies: %v", err)
	}
	for _, folder := range folders {
		if !loaded[folder] {
			t.Errorf("no example uses %s, so nothing shows that it loads", folder)
		}
	}
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// What the shipped policy says, as rows.
func TestGuardedPolicy(t *testing.T) {
	set, err := policy.Load(os.DirFS("policy/guarded"), []string{"operators"})
	if err != nil {
		t.Fatal(err)
	}
	// ask reads "TOOL VERB RESOURCE[/SUBRESOURCE] [NAMESPACE/]NAME", and the object as it would be.
	ask := func(groups []string, request, result string) policy.Decision {
		words := strings.Fields(request)
		a := action.Action{Cluster: "production", Verb: words[1]}
		groupResource, subresource, _ := strings.Cut(words[2], "/")
		a.Subresource = subresource
		a.Resource.Resource, a.Resource.Group, _ = strings.Cut(groupResource, ".")
		if a.Verb == "apply" {
			a.Verb, a.Options.PatchType = action.Patch, action.ApplyPatch
		}
		if namespace, name, namespaced := strings.Cut(words[3], "/"); namespaced {
			a.Namespace, a.Name, a.Resource.Namespaced = namespace, name, true
		} else {
			a.Name = words[3]
		}
		req := policy.Request{
			Principal: &action.Principal{Issuer: "https://login.example.com", Subject: "bot", Groups: groups},
			Tool:      words[0], Action: &a, Now: time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC),
		}
		if result != "" {
			var object map[string]any
			if err := json.Unmarshal([]byte(result), &object); err != nil {
				t.Fatal(err)
			}
			preview := action.NewPreview(nil, object)
			req.Preview = &preview
		}
		return set.Decide(req)
	}
	for _, row := range []struct {
		want            policy.Effect
		request, result string
	}{
		{policy.Allow, "get_resource get pods shop/web", ""},
		{policy.Allow, "list_resources list deployments.apps shop/", ""},
		{policy.Allow, "get_pod_logs get pods/log shop/web", ""},
		{policy.Allow, "scale_deployment patch deployments.apps/scale shop/web", `{"spec":{"replicas":1}}`},
		{policy.Allow, "scale_deployment patch deployments.apps/scale shop/web", `{"spec":{"replicas":10}}`},
		{policy.RequireApproval, "scale_deployment patch deployments.apps/scale shop/web", `{"spec":{"replicas":11}}`},
		{policy.RequireApproval, "scale_deployment patch deployments.apps/scale shop/web", `{"spec":{"replicas":0}}`},
		{policy.RequireApproval, "apply_manifest apply deployments.apps shop/web", `{"spec":{"replicas":1}}`},
		{policy.RequireApproval, "apply_manifest apply secrets shop/db", `{}`},
		{policy.RequireApproval, "delete_resource delete pods shop/web", ""},
		{policy.RequireApproval, "apply_manifest apply namespaces shop", `{}`},
		{policy.Deny, "get_resource get secrets shop/db", ""},
		{policy.Deny, "list_resources list secrets shop/", ""},
		{policy.Deny, "scale_deployment patch deployments.apps/scale kube-system/coredns", `{"spec":{"replicas":1}}`},
		{policy.Deny, "delete_resource delete namespaces shop", ""},
		{policy.Deny, "delete_resource delete persistentvolumes pv-1", ""},
		{policy.Deny, "delete_resource delete customresourcedefinitions.apiextensions.k8s.io widgets.example.com", ""},
	} {
		if d := ask([]string{"agents"}, row.request, row.result); d.Effect != row.want || d.NeedsPreview {
			t.Errorf("%s: %+v; want %s", row.request, d, row.want)
		}
		if d := ask([]string{"system:serviceaccounts", "system:serviceaccounts:agents"}, row.request, row.result); d.Effect != row.want {
			t.Errorf("%s, of a service account: %+v; want %s", row.request, d, row.want)
		}
		if d := ask([]string{"people", "system:serviceaccounts:other"}, row.request, row.result); d.Effect != policy.Deny {
			t.Errorf("%s, of somebody else: %+v", row.request, d)
		}
	}
	if d := ask([]string{"agents"}, "scale_deployment patch deployments.apps/scale shop/web", ""); !d.NeedsPreview {
		t.Errorf("a scale is decided without looking: %+v", d)
	}
	if d := ask([]string{"agents"}, "scale_deployment patch deployments.apps/scale shop/web", `{"spec":{"replicas":11}}`); !slices.Equal(d.Rules, []string{"large-scale"}) {
		t.Errorf("got %+v", d)
	}
}
