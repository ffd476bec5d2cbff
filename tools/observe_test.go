package tools

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"countersign/action"
)

// What the cluster of the tests makes of a description, and of the rest that a
// tool may ask a Reader for.
const (
	kubectlDescription = "kubectl describe"
	kubectlWaits       = "kubectl rollout status waits"
)

func (k heldKubectl) Describe(action.Resource, string, string) (string, error) {
	return k.h.answers[kubectlDescription], nil
}

func (k heldKubectl) RolloutStatus(action.Action, map[string]any) (string, bool, error) {
	if words, refused := k.h.answers[kubectlRefuses]; refused {
		return "", false, BadArgument("%s", words)
	}
	if words, waits := k.h.answers[kubectlWaits]; waits {
		return words, false, nil
	}
	return "deployment \"web\" successfully rolled out", true, nil
}

func (k heldKubectl) Explain(_ action.Resource, fields []string, recursive bool) (string, error) {
	return fmt.Sprintf("FIELD: %s, recursive %t\n", strings.Join(fields, "."), recursive), nil
}

func (h *holding) Served(_ context.Context, cluster string) (Served, error) {
	if cluster == "down" {
		return Served{}, errors.New("dial tcp 10.0.0.1:6443: connection refused")
	}
	kinds := []Kind{
		{Resource: deployments, ShortNames: []string{"deploy"}},
		{Resource: nodesV1, ShortNames: []string{"no"}},
		{Resource: pods, ShortNames: []string{"po"}},
	}
	return Served{Version: "v1.37.2", Kinds: kinds}, nil
}

func (h *holding) Verdict(_ string, a action.Action) Verdict {
	h.judged = a
	switch {
	case a.Resource == nodesV1 && h.answers["nodes"] == "denied":
		return Verdict{Effect: "deny", Reason: "no nodes"}
	case a.ReadOnly():
		return Verdict{Effect: "allow", Rules: []string{"reads"}}
	case a.Verb == action.Delete:
		return Verdict{Effect: "require_approval", Rules: []string{"deletions"}, Approvers: []string{"2 of operators"}}
	case a.Verb == action.Create:
		return Verdict{Effect: "deny", Rules: []string{"no-pods"}, Reason: "Pods are made by Deployments."}
	}
	return Verdict{Rules: []string{"small"}}
}

func (h *holding) Forecast(_ context.Context, tool string, a action.Action) (Forecast, error) {
	if err := h.tool.MayRead(action.Action{Cluster: a.Cluster, Verb: action.Get, Resource: a.Resource, Namespace: a.Namespace, Name: a.Name}); err != nil {
		h.t.Error(err)
	}
	switch a.Name {
	case "same":
		return Forecast{Asked: true, Verdict: Verdict{Effect: "allow"}}, nil
	case "conflict":
		return Forecast{}, errors.New("Apply failed with 1 conflict")
	case "down":
		return Forecast{}, context.DeadlineExceeded
	case "denied":
		return Forecast{Verdict: Verdict{Effect: "deny", Rules: []string{"no"}, Reason: "No."}}, nil
	}
	return Forecast{
		Asked: true, Verdict: Verdict{Effect: "require_approval", Rules: []string{"writes"}, Approvers: []string{"1 of operators"}},
		Diff: []action.Change{{Op: "replace", Path: "/data/size", Old: "2", New: "3"}, {Op: "add", Path: "/data/list", New: []any{"<a>"}}, {Op: "remove", Path: "/data/old", Old: "x"}},
	}, nil
}

// answer is what a call answers in the cluster of goodCalls with some more in it.
func answer(t *testing.T, name, args string, more ...string) (string, error) {
	t.Helper()
	answers := map[string]string{}
	for key, value := range inCluster {
		answers[key] = value
	}
	for i := 0; i < len(more); i += 2 {
		answers[more[i]] = more[i+1]
	}
	call, err := planIn(t, tool(t, name), answers, args)
	return call.Answer, err
}

// says fails unless the text holds each of the parts.
func says(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
}

// The whole list of tools is read by a model before it has done anything.
func TestToolsAreTerse(t *testing.T) {
	size := 0
	for _, tool := range All([]string{"east", "west"}) {
		one := len(tool.Name) + len(tool.Description) + len(tool.Schema)
		if size += one; one > 1200 {
			t.Errorf("%s is %d bytes", tool.Name, one)
		}
	}
	t.Logf("%d tools, %d bytes", len(All([]string{"east", "west"})), size)
	if size > 8000*4 { // of text like this, a token is four bytes and some more
		t.Errorf("all tools together are %d bytes", size)
	}
}

func TestReadsRefused(t *testing.T) {
	for _, row := range []struct{ tool, args, want string }{
		{"list_resources", `{"kind":"pods","namespace":"shop","label_selector":"a in b"}`, `label_selector "a in b" does not parse: write it as app=web,tier!=cache or tier in (web,api),!legacy`},
		{"list_resources", `{"kind":"pods","namespace":"shop","field_selector":"a"}`, `field_selector "a" does not parse: write it as status.phase=Running,spec.nodeName!=node-1`},
		{"list_namespaces", `{"label_selector":"=x"}`, `label_selector "=x" does not parse: `},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":[""]}`, `fields: "" is not a path: it is empty`},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":["a..b"]}`, `fields: "a..b" is not a path: ".." is not taken: name the fields on the way`},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":["a['b','c']"]}`, `fields: "a['b','c']" is not a path: a comma is not taken`},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":["{.a} {.b}"]}`, `fields: "{.a} {.b}" is not a path: braces stand only around it`},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":["a[?(@"]}`, `fields: "a[?(@" is not a path: `},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":["` + strings.Repeat("a", 201) + `"]}`, `fields: "` + strings.Repeat("a", 100) + `" is not a path: it is longer than 200 bytes`},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":["a","a","a","a","a","a","a","a","a","a","a"]}`, `argument fields has 11 items; 10 is the most that is taken`},
		{"list_resources", `{"kind":"pods","namespace":"shop","fields":"a"}`, `argument fields is text where a list is expected`},
		{"get_resource", `{"kind":"pods","name":"web-1","namespace":"shop","fields":["{"]}`, `fields: "{" is not a path: it is empty`},
		{"get_pod_logs", `{"namespace":"shop","pod":"two"}`, `pod two has several containers: give container, one of a, b; init and ephemeral containers are setup, debug`},
		{"get_pod_logs", `{"namespace":"shop","pod":"web-1","grep":"("}`, `grep is not an RE2 expression: `},
		{"get_pod_logs", `{"namespace":"shop","pod":"web-1","grep":"` + strings.Repeat("a", 201) + `"}`, `argument grep is longer than 200 characters`},
		{"list_events", `{}`, `events live in namespaces: give namespace, or all_namespaces: true`},
		{"list_events", `{"namespace":"shop","kind":"frobs"}`, `cluster local serves no kind "frobs"`},
		{"top_pods", `{}`, `pods live in namespaces: give namespace, or all_namespaces: true`},
		{"get_rollout_history", `{"kind":"deployment","namespace":"shop","name":"web","revision":9}`, `Deployment web has no revision 9: give revision one of 1, 2`},
		{"check_access", `{"verb":"get","kind":"deploy"}`, `deployments.apps live in namespaces: give namespace`},
		{"check_access", `{"verb":"get","kind":"node","namespace":"shop"}`, `nodes do not live in namespaces: leave namespace out`},
		{"check_access", `{"verb":"get","kind":"deploy","namespace":"shop","tool":"sudo"}`, `there is no tool "sudo"`},
		{"check_access", `{"verb":"get","kind":"deploy","namespace":"shop","tool":"delete_resource"}`, `delete_resource never sends get deployments.apps in namespace shop`},
		{"check_access", `{"verb":"get","kind":"deploy","namespace":"shop","subresource":"proxy"}`, `no tool sends get deployments.apps/proxy`},
		{"list_clusters", `{"cluster":"local"}`, `unknown argument "cluster"; list_clusters takes `},
		{"diagnose_workload", `{"kind":"service","namespace":"shop","name":"web"}`, `argument kind is not one of [pod deployment statefulset daemonset job replicaset]`},
	} {
		_, err := answer(t, row.tool, row.args, kubectlRefuses, "unable to find the specified revision",
			"get pods shop/two", `{"spec":{"containers":[{"name":"a"},{"name":"b"}],"initContainers":[{"name":"setup"}],"ephemeralContainers":[{"name":"debug"}]}}`)
		var argument *ArgumentError
		if !errors.As(err, &argument) || !strings.HasPrefix(err.Error(), row.want) {
			t.Errorf("%s %s\ngot  %v\nwant %s", row.tool, row.args, err, row.want)
		}
	}
}

// Without the metrics API there is nothing to sort.
func TestTopWithoutMetrics(t *testing.T) {
	for _, name := range []string{"pods.metrics.k8s.io", "nodes.metrics.k8s.io"} {
		was := served[name]
		delete(served, name)
		t.Cleanup(func() { served[name] = was })
	}
	for name, args := range map[string]string{"top_pods": `{"namespace":"shop"}`, "top_nodes": `{}`} {
		_, err := answer(t, name, args)
		if want := "cluster local does not serve the metrics API (metrics.k8s.io), so usage is not known; metrics-server provides it"; err == nil || err.Error() != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTop(t *testing.T) {
	text, err := podUsage([]byte(`{"items":[
		{"metadata":{"name":"a","namespace":"x"},"containers":[{"usage":{"cpu":"1500000n","memory":"1Gi"}},{"usage":{}}]},
		{"metadata":{"name":"b","namespace":"y"},"containers":[{"usage":{"cpu":"2","memory":"64Mi"}}]},
		{"metadata":{"name":"c","namespace":"y"}}]}`), true, "", 2)
	if want := "NAMESPACE  NAME  CPU    MEMORY\ny          b     2000m  64Mi\nx          a     2m     1024Mi\nThe first 2 of 3: see more with limit, or narrow.\n"; err != nil || text != want {
		t.Errorf("%v\n%s", err, text)
	}
	if text, err := podUsage([]byte(`{"items":[]}`), false, "", 2); err != nil || !strings.HasPrefix(text, "No usage found") {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := podUsage([]byte(`[]`), false, "", 2); err == nil {
		t.Error("what is no list is shown")
	}
	text, err = nodeUsage([]byte(`{"items":[{"metadata":{"name":"a"},"usage":{"cpu":"1","memory":"1Gi"}},{"metadata":{"name":"b"},"usage":{"cpu":"100m","memory":"4Gi"}}]}`),
		[]byte(`{"items":[{"metadata":{"name":"new"},"status":{"allocatable":{"cpu":"4"}}},{"metadata":{"name":"b"},"status":{"allocatable":{"cpu":"4","memory":"8Gi"}}}]}`), "memory", 100)
	if want := "NAME  CPU        CPU%       MEMORY     MEMORY%\nb     100m       2%         4096Mi     50%\na     1000m      ?          1024Mi     ?\nnew   <unknown>  <unknown>  <unknown>  <unknown>\n"; err != nil || text != want {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestDiscover(t *testing.T) {
	clusters := tool(t, "list_clusters", "east", "down")
	call, err := planIn(t, clusters, nil, `{}`)
	if want := "NAME  VERSION\neast  v1.37.2\ndown  unreachable: it cannot be asked what it serves\n"; err != nil || call.Answer != want {
		t.Errorf("%v\n%s", err, call.Answer)
	}
	head := "NAME         SHORT   APIVERSION  NAMESPACED  KIND\n"
	for args, want := range map[string]string{
		`{"group":"apps"}`:       head + "deployments  deploy  apps/v1     true        Deployment\n",
		`{"namespaced":false}`:   "NAME   SHORT  APIVERSION  NAMESPACED  KIND\nnodes  no     v1          false       Node\n",
		`{"group":""}`:           "NAME   SHORT  APIVERSION  NAMESPACED  KIND\nnodes  no     v1          false       Node\npods   po     v1          true        Pod\n",
		`{"match":"DEPLOY"}`:     head + "deployments  deploy  apps/v1     true        Deployment\n",
		`{"match":"certificat"}`: "None of the 3 kinds that are served fits.",
	} {
		if text, err := answer(t, "list_api_resources", args); err != nil || text != want {
			t.Errorf("%s: %v\n%s", args, err, text)
		}
	}
}

func TestCheckAccess(t *testing.T) {
	for args, want := range map[string]string{
		`{"verb":"get","kind":"deploy","namespace":"shop","name":"web"}`:                          "Allowed: get deployments.apps shop/web with get_resource.\nRules: reads\n",
		`{"verb":"list","kind":"deploy"}`:                                                         "Allowed: list deployments.apps in all namespaces with list_resources.\n",
		`{"verb":"list","kind":"node"}`:                                                           "Allowed: list nodes with list_resources.\n",
		`{"verb":"create","kind":"pod","namespace":"shop","name":"web","subresource":"eviction"}`: "Denied: create pods/eviction shop/web with evict_pod.\n",
		`{"verb":"get","kind":"pod","namespace":"shop","name":"web","subresource":"log"}`:         "Allowed: get pods/log shop/web with get_pod_logs.\n",
		`{"verb":"delete","kind":"pod","namespace":"shop","name":"web"}`:                          "Asks for approval by 2 of operators: delete pods shop/web with delete_resource.\nRules: deletions\n",
		`{"verb":"create","kind":"pod","namespace":"shop"}`:                                       "Denied: create pods in namespace shop with create_resource.\nRules: no-pods\nReason: Pods are made by Deployments.\nNo name is given",
		`{"verb":"patch","kind":"deploy","namespace":"shop","name":"web","subresource":"scale"}`:  "Not denied so far: it hangs on what the object or its namespace holds, which is looked at when the call is made: patch deployments.apps/scale shop/web with scale_deployment.\n",
		`{"verb":"apply","kind":"node","name":"n1"}`:                                              "Not denied so far: it hangs on what the object or its namespace holds, which is looked at when the call is made: apply nodes n1 with apply_manifest.\n",
	} {
		text, err := answer(t, "check_access", args)
		if err != nil || !strings.HasPrefix(text, want) || !strings.HasSuffix(text, "This is policy alone: the cluster's own RBAC, quotas and admission were not asked.\n") {
			t.Errorf("%s: %v\n%s", args, err, text)
		}
		changes := strings.Contains(args, "create") && !strings.Contains(args, "eviction") || strings.Contains(args, "patch") || strings.Contains(args, "apply")
		if said := strings.Contains(text, "What the change contains was not looked at; diff_manifest does that.\n"); said != changes {
			t.Errorf("%s\n%s", args, text)
		}
	}
}

// What is asked about has a body of its kind, which names the object and no more:
// without one it would be about every field.
func TestCheckAccessStandsIn(t *testing.T) {
	for args, want := range map[string]string{
		`{"verb":"patch","kind":"deploy","namespace":"shop","name":"web"}`:                        "/metadata/name",
		`{"verb":"patch","kind":"deploy","namespace":"shop","name":"web","subresource":"scale"}`:  "/metadata/name",
		`{"verb":"apply","kind":"deploy","namespace":"shop","name":"web"}`:                        "/apiVersion /kind /metadata/name",
		`{"verb":"create","kind":"deploy","namespace":"shop"}`:                                    "/apiVersion /kind /metadata/name",
		`{"verb":"create","kind":"pod","namespace":"shop","name":"web","subresource":"eviction"}`: "/apiVersion /kind /metadata/name /metadata/namespace",
		`{"verb":"create","kind":"pod","namespace":"shop","name":"web","subresource":"exec"}`:     "",
		`{"verb":"get","kind":"deploy","namespace":"shop","name":"web"}`:                          "",
	} {
		access := tool(t, "check_access")
		h := held(t, access, inCluster)
		decoded, err := access.Decode([]byte(args))
		if err != nil {
			t.Fatal(err)
		}
		_, err = access.Plan(t.Context(), h, decoded)
		if got := strings.Join(h.judged.Fields(), " "); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", args, got, err, want)
		}
	}
}

func TestExplainPaths(t *testing.T) {
	for field, want := range map[string]string{
		"spec.template.spec": "spec.template.spec", ".spec.containers[*].image": "spec.containers.image", "spec.containers[0]": "spec.containers", "[*]": "",
		`spec.containers[?(@.name=="a.b")].image`: "spec.containers.image",
	} {
		args := fmt.Sprintf(`{"kind":"deploy","field":%q}`, field)
		if text, err := answer(t, "explain_resource", args); err != nil || text != "FIELD: "+want+", recursive false\n" {
			t.Errorf("%s: %s, %v", field, text, err)
		}
	}
}

// Without a mark that it is data, text from the cluster must not look like more.
func TestForeign(t *testing.T) {
	for words, want := range map[string]string{
		"unable to find specified revision 1": "unable to find specified revision 1",
		"a\n\nb\tc\u202e\x1b[1md":             "a; b cd",
		strings.Repeat("ü", MaxForeign):       strings.Repeat("ü", MaxForeign/2) + "...",
	} {
		var argument *ArgumentError
		if err := Foreign(errors.New(words), MaxForeign); !errors.As(err, &argument) || err.Error() != want {
			t.Errorf("%q: %q", words, err)
		}
	}
}

func TestDiffManifest(t *testing.T) {
	manifest := func(names ...string) string {
		for i, name := range names {
			names[i] = fmt.Sprintf(`{apiVersion: v1, kind: ConfigMap, metadata: {name: %s}}`, name)
		}
		return fmt.Sprintf(`{"namespace":"shop","manifest":%q}`, strings.Join(names, "\n---\n"))
	}
	text, err := answer(t, "diff_manifest", manifest("a", "same", "conflict", "denied"))
	want := `apply configmaps shop/a: policy asks people for approval: 1 of operators (rule writes)
   /data/size
   - "2"
   + "3"
   /data/list
   + [
   +   "<a>"
   + ]
   /data/old
   - "x"

apply configmaps shop/same: policy allows it
   nothing would change

apply configmaps shop/conflict
   cannot be tried: Apply failed with 1 conflict

apply configmaps shop/denied: policy denies it (rule no): No.
   not compared
`
	if err != nil || text != want {
		t.Errorf("%v\n%s", err, text)
	}
	if _, err := answer(t, "diff_manifest", manifest("conflict")); err == nil || err.Error() != "Apply failed with 1 conflict" {
		t.Errorf("of one object the API server's answer is the call's: %v", err)
	}
	if _, err := answer(t, "diff_manifest", manifest("a", "down")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a cluster there is no answer: %v", err)
	}
	long := Forecast{Asked: true, Diff: []action.Change{{Op: "replace", Path: "/data/x", Old: strings.Repeat("ü", maxForecast), New: "y"}}}
	if text := forecastText(action.Action{Verb: "patch"}, long); len(text) > 2*maxSide || !strings.Contains(text, "ü\n   (the first 1024 of 32771 bytes)\n   + \"y\"\n") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
	large := Forecast{Asked: true, Diff: slices.Repeat([]action.Change{{Op: "add", Path: "/data/x", New: strings.Repeat("x", maxSide-10)}}, 32)}
	if text := forecastText(action.Action{Verb: "patch"}, large); len(text) > maxForecast+200 || !strings.Contains(text, "(the first 16384 of 33") {
		t.Errorf("%d bytes: %s", len(text), text[len(text)-200:])
	}
}

func TestRolloutStatus(t *testing.T) {
	const args = `{"kind":"deployment","namespace":"shop","name":"web"}`
	if text, err := answer(t, "get_rollout_status", args); err != nil || text != `The rollout is over: deployment "web" successfully rolled out` {
		t.Errorf("%s, %v", text, err)
	}
	text, err := answer(t, "get_rollout_status", args, kubectlRefuses, `deployment "web" exceeded its progress deadline`, "get deployments.apps shop/web", `{"spec":{"paused":true}}`)
	if want := "The rollout has failed: deployment \"web\" exceeded its progress deadline\n" + whyNot + "\nIt is paused: nothing more happens until resume_rollout."; err != nil || text != want {
		t.Errorf("%s, %v", text, err)
	}
}

func TestRolloutStatusWords(t *testing.T) {
	const args = `{"kind":"deployment","namespace":"shop","name":"web"}`
	for words, want := range map[string]string{
		"rollout status is only available for RollingUpdate strategy type": "There is no rollout to follow: with updateStrategy OnDelete",
		"object is odd": "How far the rollout is cannot be told: object is odd",
	} {
		if text, err := answer(t, "get_rollout_status", args, kubectlRefuses, words); err != nil || !strings.HasPrefix(text, want) {
			t.Errorf("%s, %v", text, err)
		}
	}
	text, err := answer(t, "get_rollout_status", args, kubectlWaits, `Waiting for deployment "web" rollout to finish: 0 of 1 updated replicas are available...`)
	want := "The rollout is not over: Waiting for deployment \"web\" rollout to finish: 0 of 1 updated replicas are available...\n" + whyNot
	if err != nil || text != want {
		t.Errorf("%s, %v", text, err)
	}
}

// A revision is told by its images, whichever object keeps it.
func TestRolloutHistory(t *testing.T) {
	const owned = `"creationTimestamp":"2026-03-14T10:00:00Z","ownerReferences":[{"uid":"u1","controller":true}]`
	containers := func(image string) string {
		return `{"template":{"spec":{"containers":[{"image":"` + image + `"},{"image":"side"}]}}}`
	}
	set := func(meta, image string) string {
		return `{"metadata":{` + meta + `},"spec":` + containers(image) + `}`
	}
	text, err := answer(t, "get_rollout_history", `{"kind":"deploy","namespace":"shop","name":"web"}`,
		"get deployments.apps shop/web", `{"metadata":{"uid":"u1"},"spec":{"selector":{"matchLabels":{"app":"web"}}}}`,
		"list replicasets.apps in namespace shop", `{"items":[`+strings.Join([]string{
			set(owned+`,"annotations":{"deployment.kubernetes.io/revision":"10","kubernetes.io/change-cause":"a newer\nsite"}`, "web:3"),
			set(owned+`,"annotations":{"deployment.kubernetes.io/revision":"9"}`, "web:2"),
			set(owned, "none"),
			set(`"annotations":{"deployment.kubernetes.io/revision":"11"}`, "of-another"),
		}, ",")+`]}`)
	want := "REVISION      AGE   IMAGES       CHANGE-CAUSE\n9             120m  web:2, side  <none>\n10 (current)  120m  web:3, side  a newer site\n"
	if err != nil || text != want {
		t.Errorf("%v\n%s", err, text)
	}
	text, err = answer(t, "get_rollout_history", `{"kind":"ds","namespace":"shop","name":"agent"}`,
		"get daemonsets.apps shop/agent", `{"metadata":{"uid":"u1"},"spec":{"selector":{"matchLabels":{"app":"agent"}}}}`,
		"list controllerrevisions.apps in namespace shop", `{"items":[{"metadata":{`+owned+`},"revision":2,"data":{"spec":`+containers("agent:2")+`}}]}`)
	want = "REVISION     AGE   IMAGES         CHANGE-CAUSE\n2 (current)  120m  agent:2, side  <none>\n"
	if err != nil || text != want {
		t.Errorf("%v\n%s", err, text)
	}
	if text, err := answer(t, "get_rollout_history", `{"kind":"deploy","namespace":"shop","name":"web"}`); err != nil || text != "No revisions found." {
		t.Errorf("%s, %v", text, err)
	}
}

func TestListEvents(t *testing.T) {
	one := func(object, kind, reason, message, first, last string, count int) string {
		return fmt.Sprintf(`{"metadata":{"namespace":"shop"},"involvedObject":{"kind":"Pod","name":%q},"type":%q,"reason":%q,"message":%q,"firstTimestamp":%q,"lastTimestamp":%q,"count":%d}`,
			object, kind, reason, message, first, last, count)
	}
	list := func(meta string, items ...string) string {
		return `{"metadata":{` + meta + `},"items":[` + strings.Join(items, ",") + `]}`
	}
	const key = "list events in namespace shop"
	text, err := answer(t, "list_events", `{"namespace":"shop"}`, key, list("",
		one("web-1", "Normal", "Pulled", "a\nb\u202e", "2026-03-14T11:00:00Z", "2026-03-14T11:00:00Z", 1),
		one("web-1", "Warning", "BackOff", "back-off", "2026-03-14T10:00:00Z", "2026-03-14T11:00:00Z", 5),
		one("web-1", "Warning", "BackOff", "back-off", "2026-03-14T11:00:00Z", "2026-03-14T11:59:00Z", 7),
		`{"metadata":{"namespace":"shop","creationTimestamp":"2026-03-14T11:50:00Z"},"involvedObject":{"kind":"Node","name":"n1"},"type":"Normal","reason":"New","eventTime":"2026-03-14T11:30:00.000000Z","series":{"count":3,"lastObservedTime":"2026-03-14T11:58:00.000000Z"}}`))
	want := "LAST SEEN            TYPE     REASON   OBJECT     MESSAGE\n" +
		"60s (x12 over 120m)  Warning  BackOff  Pod/web-1  back-off\n" +
		"2m (x3 over 30m)     Normal   New      Node/n1    \n" +
		"60m                  Normal   Pulled   Pod/web-1  a b\n"
	if err != nil || text != want {
		t.Errorf("%v\n%s", err, text)
	}
	text, err = answer(t, "list_events", `{"namespace":"shop","limit":1,"since_seconds":600}`, key, list(`"continue":"x"`,
		one("a", "Normal", "X", strings.Repeat("ü", 1000), "2026-03-14T11:00:00Z", "2026-03-14T11:55:00Z", 1),
		one("b", "Normal", "X", "y", "2026-03-14T11:00:00Z", "2026-03-14T11:51:00Z", 1),
		one("c", "Normal", "X", "old", "2026-03-14T11:00:00Z", "2026-03-14T11:49:00Z", 1)))
	says(t, text, strings.Repeat("ü", maxMessage)+"...\n", "The newest 1 of 2: narrow with kind and name, type or since_seconds.\n",
		"There are more than the 2000 that were looked at: narrow with kind and name, or type.\n")
	if err != nil || strings.Contains(text, "old") {
		t.Errorf("%v\n%s", err, text)
	}
	if text, err := answer(t, "list_events", `{"namespace":"shop"}`, key, `{"items":[]}`); err != nil || text != "No events found.\n" {
		t.Errorf("%q, %v", text, err)
	}
	// What lives in no namespace has its events in namespace default.
	for _, args := range []string{`{"kind":"node","name":"n1"}`, `{"kind":"Node","namespace":"shop"}`} {
		text, err := answer(t, "list_events", args, "list events in namespace default", list("", one("n1", "Normal", "NodeReady", "is ready", "2026-03-14T11:00:00Z", "2026-03-14T11:59:00Z", 1)))
		says(t, text, "NodeReady", "\nA Node lives in no namespace: its events are those in namespace default.\n")
		if err != nil {
			t.Error(err)
		}
	}
	if text, err := answer(t, "list_events", `{"kind":"node","all_namespaces":true}`, "list events", list("")); err != nil || text != "No events found.\n" {
		t.Errorf("%q, %v", text, err)
	}
	// Pods that cannot be created have another name each time.
	text, err = answer(t, "list_events", `{"namespace":"shop"}`, key, list("",
		one("web", "Warning", "FailedCreate", `pods "web-bcd42" is forbidden`, "2026-03-14T11:00:00Z", "2026-03-14T11:00:00Z", 1),
		one("web", "Warning", "FailedCreate", `pods "web-x7k2p" is forbidden`, "2026-03-14T11:59:00Z", "2026-03-14T11:59:00Z", 1)))
	if err != nil || strings.Contains(text, "bcd42") || !strings.Contains(text, "60s (x2 over 60m)") {
		t.Errorf("%v\n%s", err, text)
	}
	// What is asked is what was meant, and nothing else.
	h := held(t, tool(t, "list_events"), inCluster)
	args, _ := h.tool.Decode([]byte(`{"namespace":"shop","kind":"deploy","name":"web"}`))
	if _, err := h.tool.Plan(t.Context(), h, args); err != nil || !slices.Equal(h.asked, []string{key}) {
		t.Errorf("asked %v, %v", h.asked, err)
	}
}

func TestFields(t *testing.T) {
	object := map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"app.kubernetes.io/name": "shop"}},
		"spec":     map[string]any{"replicas": int64(3), "list": []any{map[string]any{"name": "a", "on": true}, map[string]any{"name": "b"}}, "text": "x\ny", "none": nil},
	}
	for path, want := range map[string]string{
		"metadata.labels['app.kubernetes.io/name']": "shop", `metadata.labels["app.kubernetes.io/name"]`: "shop", `{.metadata.labels['app\.kubernetes\.io/name']}`: "shop",
		`metadata.labels.app\.kubernetes\.io/name`: "shop", "items[*].spec.replicas": "3", "{.items[*].spec.replicas}": "3",
		"REPLICAS:.spec.replicas": "3", "THE NAME:{.spec.list[0].name}": "a", `NAME:metadata.labels["app.kubernetes.io/name"]`: "shop", "spec.list[0:1].name": "a",
		"spec.replicas": "3", "{.spec.list[*].name}": `["a","b"]`, "$.spec.list[0]": `{"name":"a","on":true}`, "spec.list[7].name": "<none>",
		`{.spec.list[?(@.name=="b")].name}`: "b", "spec.absent.deeper": "<none>", "spec.text": "x y", "spec.none": "<none>", ".spec['replicas']": "3",
	} {
		options, err := withFields(action.Options{Table: true}, []string{path})
		if err != nil || options.Table || len(options.Fields) != 1 {
			t.Errorf("%s: %+v, %v", path, options, err)
			continue
		}
		fields, err := parseFields(options.Fields)
		if err != nil {
			t.Fatal(err)
		}
		if value, err := fields[0].of(object); err != nil || fieldText(value) != want {
			t.Errorf("%s: %s, %v; want %s", path, fieldText(value), err, want)
		}
	}
	for _, path := range []string{"spec[0]", "spec.replicas[0]"} {
		options, err := withFields(action.Options{}, []string{path})
		if err != nil {
			t.Fatal(err)
		}
		fields, _ := parseFields(options.Fields)
		if value, err := fields[0].of(object); err == nil && value != nil {
			t.Errorf("%s: %v", path, value)
		}
	}
}

// Nothing that a caller writes as a path ends the server, or takes more of an
// object than it holds.
func FuzzFields(f *testing.F) {
	for _, seed := range []string{"a", "a[*].b", `a[?(@.b=="c")]`, "a[0:2]", "a['b']", "a[-1:]", "a[?(@.b>1)].c", "*", "a.*.b", `{.a[?(@.b in [1])]}`} {
		f.Add(seed)
	}
	object := map[string]any{"a": []any{map[string]any{"b": "c"}, map[string]any{"b": int64(2)}, nil}, "b": map[string]any{"c": 1.5}}
	f.Fuzz(func(t *testing.T, path string) {
		options, err := withFields(action.Options{}, []string{path})
		if err != nil {
			return
		}
		fields, err := parseFields(options.Fields)
		if err != nil {
			t.Fatalf("%q was a path, and is none now: %v", path, err)
		}
		value, err := fields[0].of(object)
		if text := fieldText(value); err == nil && len(text) > 4*maxCell+10 {
			t.Errorf("%q: %d bytes", path, len(text))
		}
	})
}

// No path leads to a value of a Secret: it is masked before anything is selected.
func TestFieldsAreMasked(t *testing.T) {
	const secret = `{"metadata":{"name":"db","namespace":"shop"},"data":{"password":"aHVudGVyMg=="},"stringData":{"x":"hunter2"}}`
	fields := []string{".data.password", ".data", ".*", ".data.*", `.stringData.x`}
	get := getDB
	get.Options.Fields = fields
	one, err := renderObject([]Response{{Action: get, Body: []byte(secret)}})
	if err != nil {
		t.Fatal(err)
	}
	list := podsAll
	list.Resource, list.Options.Fields = getDB.Resource, fields
	several, err := renderList([]Response{{Action: list, Body: []byte(`{"items":[` + secret + `]}`)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{one, several} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "aHVudGVyMg") || !strings.Contains(text, "***") {
			t.Errorf("got\n%s", text)
		}
	}
	if want := "NAMESPACE  NAME  data.password  data  "; !strings.HasPrefix(several, want) {
		t.Errorf("got %q", several)
	}
}

// A path that leads nowhere is told from a value that some objects lack.
func TestFieldsThatAreNowhere(t *testing.T) {
	list := podsIn
	list.Options.Fields = []string{".spec.nodename", ".spec.nodeName"}
	got, err := renderList([]Response{{Action: list, Body: []byte(`{"items":[{"metadata":{"name":"a"},"spec":{"nodeName":"n1"}},{"metadata":{"name":"b"}}]}`)}})
	want := "NAME  spec.nodename  spec.nodeName\na     <none>         n1\nb     <none>         <none>\nNo object shown has spec.nodename.\n"
	if err != nil || got != want {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestRenderListOfFields(t *testing.T) {
	list := podsIn
	list.Options.Fields = []string{".spec.nodeName", ".spec.containers[*].image"}
	body := `{"metadata":{"continue":"abc","remainingItemCount":4998},"items":[
		{"metadata":{"name":"a"},"spec":{"nodeName":"n1","containers":[{"image":"x"},{"image":"y"}]}},{"metadata":{"name":"b"}}]}`
	got, err := renderList([]Response{{Action: list, Body: []byte(body)}})
	want := "NAME  spec.nodeName  spec.containers[*].image\na     n1             [\"x\",\"y\"]\nb     <none>         <none>\n" +
		"2 of 5000 shown. Narrow with label_selector or field_selector, or go on with continue: abc\n"
	if err != nil || got != want {
		t.Errorf("%v\n%s", err, got)
	}
	if got, err := renderList([]Response{{Action: list, Body: []byte(`{"items":[]}`)}}); err != nil || got != "No pods found in namespace shop (list_namespaces shows which there are)." {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := renderList([]Response{{Action: list, Body: []byte(`"x"}]}`), Omitted: 40 << 20}}); err == nil || !strings.HasPrefix(err.Error(), "the objects are 41943046 bytes together") {
		t.Error(err)
	}
	var items []string
	for i := range 500 {
		items = append(items, fmt.Sprintf(`{"metadata":{"name":"pod-%d"},"spec":{"nodeName":%q}}`, i, strings.Repeat("x", 300)))
	}
	got, err = renderList([]Response{{Action: list, Body: []byte(`{"items":[` + strings.Join(items, ",") + `]}`)}})
	if err != nil || len(got) > maxBytes+200 || !strings.Contains(got, "of the 500 fetched: narrow with") {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
