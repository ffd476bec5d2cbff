package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"countersign/e2e/rig"
)

// served is one kind with the versions that the API server serves it in, the
// preferred one first.
type served struct {
	group, kind, resource string
	namespaced            bool
	versions              []string
}

// severalVersions lists the kinds that are served in more than one version, as
// the API server's own discovery document tells it.
func severalVersions(ctx context.Context, cluster *rig.ControlPlane) ([]served, error) {
	text, err := cluster.Run(ctx, "", "get", "--raw", "/apis")
	if err != nil {
		return nil, err
	}
	var groups struct {
		Groups []struct {
			Name     string
			Versions []struct{ Version string }
		}
	}
	if err := json.Unmarshal([]byte(text), &groups); err != nil {
		return nil, err
	}
	var all []served
	for _, g := range groups.Groups {
		kinds := map[string]*served{}
		var order []string
		for _, v := range g.Versions {
			text, err := cluster.Run(ctx, "", "get", "--raw", "/apis/"+g.Name+"/"+v.Version)
			if err != nil {
				return nil, err
			}
			var list struct {
				Resources []struct {
					Name, Kind string
					Namespaced bool
				}
			}
			if err := json.Unmarshal([]byte(text), &list); err != nil {
				return nil, err
			}
			for _, r := range list.Resources {
				if strings.Contains(r.Name, "/") {
					continue
				}
				if kinds[r.Kind] == nil {
					kinds[r.Kind] = &served{group: g.Name, kind: r.Kind, resource: r.Name, namespaced: r.Namespaced}
					order = append(order, r.Kind)
				}
				kinds[r.Kind].versions = append(kinds[r.Kind].versions, v.Version)
			}
		}
		for _, kind := range order {
			if k := kinds[kind]; len(k.versions) > 1 {
				all = append(all, *k)
			}
		}
	}
	return all, nil
}

// The same object under every version that it is served in, and under every
// spelling of its kind, gets the same verdict; a manifest in a version that rules
// do not see gets none, and is told the one that they do.
func TestVersionsAndSpellings(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	cluster, err := rig.StartControlPlane(ctx, dir, audience, os.Stderr, "--all-apis")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cluster.Close() })
	const policy = `
apiVersion: countersign/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  rules:
  - {name: all, effect: allow}
  - {name: probe, effect: deny, match: {names: [probe]}}
`
	if err := rig.WriteFiles(dir, map[string]string{"policy/policy.yaml": policy}); err != nil {
		t.Fatal(err)
	}
	server, err := newServer(dir, cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Stop() })
	agent := &rig.Agent{URL: server.URL, Token: world.token}
	if err := agent.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	call := func(tool string, args map[string]any) string {
		t.Helper()
		text, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := agent.Call(ctx, tool, string(text))
		if err != nil {
			t.Fatal(err)
		}
		return answer.Text
	}

	all, err := severalVersions(ctx, cluster)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Errorf("only %d kinds with several versions: is the API server serving all of them?", len(all))
	}
	for _, k := range all {
		namespace := ""
		if k.namespaced {
			namespace = "default"
		}
		full := k.resource + "." + k.group
		spellings := []string{k.kind, strings.ToLower(k.kind), k.resource, full, strings.ToLower(k.kind) + "." + k.group}
		for _, version := range k.versions {
			spellings = append(spellings, k.resource+"."+version+"."+k.group)
		}
		for _, kind := range spellings {
			for tool, args := range map[string]map[string]any{
				"get_resource":    {"kind": kind, "name": "probe"},
				"delete_resource": {"kind": kind, "name": "probe"},
				"patch_resource":  {"kind": kind, "name": "probe", "patch": "metadata: {labels: {a: b}}"},
			} {
				if namespace != "" {
					args["namespace"] = namespace
				}
				// A guard may have a word as well; an unknown kind may not.
				if text := call(tool, args); !strings.Contains(text, "status: denied") || !strings.Contains(text, "probe") {
					t.Errorf("%s %s: %s", tool, kind, text)
				}
			}
		}
		refused := 0
		for _, version := range k.versions {
			text := call("apply_manifest", map[string]any{
				"namespace": namespace,
				"manifest":  fmt.Sprintf("{apiVersion: %s/%s, kind: %s, metadata: {name: probe}}", k.group, version, k.kind),
			})
			switch {
			case strings.Contains(text, "write it as "+k.group+"/"):
				refused++
			case !strings.Contains(text, "status: denied") || !strings.Contains(text, "probe"):
				t.Errorf("apply of %s/%s %s: %s", k.group, version, k.kind, text)
			}
		}
		if refused != len(k.versions)-1 {
			t.Errorf("%s: %d of the versions %v were refused; all but one of them should be", full, refused, k.versions)
		}
	}
	t.Logf("%d kinds with several versions", len(all))
}

// What a call sends to the API server: one request where attributes decide, and
// no more than the decision hangs on elsewhere.
func TestRequestsToTheCluster(t *testing.T) {
	s := newStageWith(t, `
  - {name: reads, effect: allow, match: {verbs: [get, list]}}
  - {name: scales, effect: allow, match: {tools: [scale_deployment], names: [web]}}
  - {name: small, effect: allow, match: {tools: [scale_deployment], names: [looked]}, when: object.spec.replicas < 5}
  - {name: settings, effect: allow, match: {resources: [configmaps]}}
  - {name: own, effect: allow, match: {resources: [services], namespaceSelector: {matchLabels: {team: shop}}}}
`)
	if _, err := world.cluster.Run(s.ctx, "", "label", "namespace", s.namespace, "team=shop"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var requests []string
	s.proxy.Hold(func(r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Audit-Id") != "" { // discovery has none, and is done once
			requests = append(requests, r.Method)
		}
		return false
	})
	for _, row := range []struct{ name, tool, args, want string }{
		{"a read", "get_resource", `{"kind":"deploy","name":"web"}`, "GET"},
		{"a list", "list_resources", `{"kind":"pods"}`, "GET"},
		{"a change by attributes", "scale_deployment", `{"name":"web","replicas":3}`, "PATCH"},
		{"an apply by attributes", "apply_manifest", `{"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}"}`, "PATCH"},
		{"a creation by attributes", "create_resource", `{"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: b}}"}`, "POST"},
		{"a deletion by attributes", "delete_resource", `{"kind":"configmap","name":"a"}`, "DELETE"},
		{"a rule about the namespace", "apply_manifest", `{"manifest":"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}"}`, "GET PATCH"},
		{"a denial", "delete_resource", `{"kind":"deploy","name":"web"}`, ""},
		{"a rule about the object", "scale_deployment", `{"name":"looked","replicas":3}`, "GET"}, // there is none: the API server says so
	} {
		mu.Lock()
		requests = nil
		mu.Unlock()
		args := strings.Replace(row.args, "{", fmt.Sprintf(`{"namespace":%q,`, s.namespace), 1)
		answer, err := s.agent.Call(s.ctx, row.tool, args)
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if got := strings.Join(requests, " "); got != row.want {
			t.Errorf("%s: sent %q; want %q (%s)", row.name, got, row.want, answer.Text)
		}
		mu.Unlock()
	}
}

// What was looked at is what the request meets: an agent cannot race itself past
// a rule about the object by changing it between the look and the request.
func TestObjectChangesOnTheWay(t *testing.T) {
	s := newStageWith(t, `
  - {name: few, effect: allow, match: {resources: [deployments.apps]}, when: object.spec.replicas <= 5}
`)
	set := func(seconds int) {
		t.Helper()
		if _, err := world.cluster.Run(s.ctx, "", "patch", "deployment", "web", "-n", s.namespace, "--type=merge", "-p", fmt.Sprintf(`{"spec":{"progressDeadlineSeconds":%d}}`, seconds)); err != nil {
			t.Fatal(err)
		}
	}
	set(4)
	for _, row := range []struct {
		seconds  int
		refused  bool
		replicas string
	}{{600, true, "2"}, {3, false, "3"}} {
		held := s.proxy.Hold(func(r *http.Request) bool { return r.Method == http.MethodPatch && r.URL.Query().Get("dryRun") == "" })
		answered := make(chan rig.Answer, 1)
		go func() {
			answer, err := s.agent.Call(s.ctx, "patch_resource", fmt.Sprintf(`{"kind":"deploy","namespace":%q,"name":"web","type":"json","patch":"[{\"op\":\"copy\",\"from\":\"/spec/progressDeadlineSeconds\",\"path\":\"/spec/replicas\"}]"}`, s.namespace))
			if err != nil {
				t.Error(err)
			}
			answered <- answer
		}()
		<-held
		set(row.seconds)
		s.proxy.Release(true)
		if answer := <-answered; answer.IsError != row.refused || row.refused && !strings.Contains(answer.Text, "the object changed while the request was on its way") {
			t.Errorf("changed to %d: %s", row.seconds, answer.Text)
		}
		if got := s.replicas(); got != row.replicas {
			t.Errorf("changed to %d: %s replicas; want %s", row.seconds, got, row.replicas)
		}
		set(4)
	}
}

// An agent that repeats itself is told so, whatever the answer was.
func TestAgentInALoop(t *testing.T) {
	s := newStage(t)
	for _, args := range []string{`{"kind":"deploy","namespace":%q,"name":"web"}`, `{"kind":"deploy","namespace":%q,"name":"gone"}`, `{"kind":"nothing","namespace":%q,"name":"web"}`} {
		var last rig.Answer
		for range 21 {
			var err error
			if last, err = s.agent.Call(s.ctx, "get_resource", fmt.Sprintf(args, s.namespace)); err != nil {
				t.Fatal(err)
			}
		}
		if !last.IsError || last.Structured.Rule != "guard:loop" || !strings.Contains(last.Text, "You are repeating yourself") {
			t.Errorf("%s: %s", args, last.Text)
		}
	}
}
