package tools

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"countersign/action"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file under testdata, or writes it with -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./tools -update writes it)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is\n%s\nnow it would be\n%s", path, want, got)
	}
}

func indented(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// served is what the cluster of these tests serves: the names that people use,
// and the one resource behind them.
var served = map[string]action.Resource{
	"pod pods po":             {Version: "v1", Resource: "pods", Kind: "Pod", Namespaced: true},
	"secret secrets":          {Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true},
	"configmap configmaps cm": {Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true},
	"namespace namespaces ns": {Version: "v1", Resource: "namespaces", Kind: "Namespace"},
	"node nodes no":           {Version: "v1", Resource: "nodes", Kind: "Node"},
	"job jobs":                {Group: "batch", Version: "v1", Resource: "jobs", Kind: "Job", Namespaced: true},
	"deployment deployments deploy deployments.apps": {Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true},
	"pods.metrics.k8s.io":                            {Group: "metrics.k8s.io", Version: "v1beta1", Resource: "pods", Kind: "PodMetrics", Namespaced: true},
	"nodes.metrics.k8s.io":                           {Group: "metrics.k8s.io", Version: "v1beta1", Resource: "nodes", Kind: "NodeMetrics"},
	"clusterrole clusterroles":                       {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles", Kind: "ClusterRole"},
}

// resolver resolves as kube does: kinds in any case, manifests by apiVersion.
type resolver struct{}

func (resolver) Resolve(_ context.Context, cluster, apiVersion, kind string) (action.Resource, error) {
	for names, r := range served {
		version := strings.TrimPrefix(r.Group+"/"+r.Version, "/")
		if apiVersion == "" && slices.Contains(strings.Fields(names), strings.ToLower(kind)) || apiVersion == version && kind == r.Kind {
			return r, nil
		}
	}
	return action.Resource{}, BadArgument("cluster %s serves no kind %q", cluster, strings.TrimSpace(apiVersion+" "+kind))
}

// local are the tools for one cluster, made once: it takes longer than most of these tests.
var local = sync.OnceValue(func() []*Tool { return All([]string{"local"}) })

func tool(t testing.TB, name string, clusters ...string) *Tool {
	t.Helper()
	all := local()
	if len(clusters) > 0 {
		all = All(clusters)
	}
	for _, tool := range all {
		if tool.Name == name {
			return tool
		}
	}
	t.Fatalf("no tool %s", name)
	return nil
}

// plan decodes and plans a call, as gate does.
func plan(t testing.TB, tool *Tool, args string) (Call, error) {
	t.Helper()
	decoded, err := tool.Decode([]byte(args))
	if err != nil {
		return Call{}, err
	}
	return tool.Plan(t.Context(), cluster(), decoded)
}

// What a client is told of each tool: the file is what a reviewer looks at when
// a tool changes, and what a client's cached copy would differ from.
func TestSchemas(t *testing.T) {
	type scope struct {
		Verbs                 []string
		Resource, Subresource string
	}
	var names []string
	for _, tool := range All([]string{"local"}) {
		names = append(names, tool.Name+".json")
		var scopes []scope
		for _, s := range tool.Scopes {
			scopes = append(scopes, scope(s))
		}
		golden(t, "schemas/"+tool.Name+".json", indented(t, map[string]any{
			"name": tool.Name, "title": tool.Title, "description": tool.Description, "schema": tool.Schema, "scopes": scopes,
			"readOnly": tool.ReadOnly(), "destructive": tool.Destructive(), "idempotent": tool.Idempotent(),
		}))
	}
	files, err := os.ReadDir("testdata/schemas")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !slices.Contains(names, file.Name()) {
			t.Errorf("testdata/schemas/%s is of no tool", file.Name())
		}
	}
	if len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
		t.Errorf("two tools share a name: %v", names)
	}
}

// With one cluster there is nothing to choose; with more, every tool about a
// cluster must be told which.
func TestClusterArgument(t *testing.T) {
	for _, tool := range All([]string{"local"}) {
		if bytes.Contains(tool.Schema, []byte(`"cluster"`)) {
			t.Errorf("%s takes a cluster, though there is only one", tool.Name)
		}
	}
	for _, tool := range All([]string{"east", "west"}) {
		var schema struct {
			Properties map[string]struct{ Enum []string }
			Required   []string
		}
		if err := json.Unmarshal(tool.Schema, &schema); err != nil {
			t.Fatal(err)
		}
		cluster, has := schema.Properties["cluster"]
		if about := len(tool.Scopes) > 0 && tool.Name != "list_clusters"; has != about || slices.Contains(schema.Required, "cluster") != about {
			t.Errorf("%s: cluster argument %v, required %v", tool.Name, has, schema.Required)
		} else if about && !slices.Equal(cluster.Enum, []string{"east", "west"}) {
			t.Errorf("%s: cluster is one of %v", tool.Name, cluster.Enum)
		}
	}

	scale := tool(t, "scale_deployment", "east", "west")
	call, err := plan(t, scale, `{"cluster":"west","namespace":"shop","name":"web","replicas":3}`)
	if err != nil || call.Plan.Actions[0].Cluster != "west" || call.Args["cluster"] != "west" {
		t.Errorf("got %+v, %v", call, err)
	}
	for args, want := range map[string]string{
		`{"namespace":"shop","name":"web","replicas":3}`:                    "argument cluster is missing",
		`{"cluster":"north","namespace":"shop","name":"web","replicas":3}`:  "argument cluster is not one of [east west]",
		`{"cluster":"","namespace":"shop","name":"web","replicas":3}`:       "argument cluster is not one of [east west]",
		`{"cluster":null,"namespace":"shop","name":"web","replicas":3}`:     "argument cluster is null where text is expected",
		`{"cluster":["west"],"namespace":"shop","name":"web","replicas":3}`: "argument cluster is a list where text is expected",
	} {
		if _, err := plan(t, scale, args); err == nil || err.Error() != want {
			t.Errorf("%s: %v; want %s", args, err, want)
		}
	}
	// The only one may be named, and is left out of what is recorded.
	call, err = plan(t, tool(t, "scale_deployment"), `{"cluster":"local","namespace":"shop","name":"web","replicas":3}`)
	if err != nil || call.Plan.Actions[0].Cluster != "local" || call.Args["cluster"] != nil {
		t.Errorf("got %+v, %v", call, err)
	}
	for _, other := range []string{`"east"`, `""`, `null`, `{}`, `["local"]`} {
		_, err := plan(t, tool(t, "scale_deployment"), `{"cluster":`+other+`,"namespace":"shop","name":"web","replicas":3}`)
		if want := "argument cluster: this server governs local alone; leave cluster out"; err == nil || err.Error() != want {
			t.Errorf("%s: %v; want %s", other, err, want)
		}
	}
}

// Hints come from the scopes, and say no less than what a tool can do.
func TestHints(t *testing.T) {
	scopes := func(verbs ...string) *Tool { return &Tool{Scopes: []action.Scope{{Verbs: verbs}}} }
	for _, row := range []struct {
		tool                              *Tool
		readOnly, destructive, idempotent bool
	}{
		{scopes("get", "list"), true, false, true},
		{scopes("create"), false, false, false},
		{scopes("create", "patch"), false, true, true},
		{scopes("patch"), false, true, true},
		{tool(t, "create_resource"), false, false, false},
		{tool(t, "patch_resource"), false, true, false},
		{tool(t, "apply_manifest"), false, true, true},
		{tool(t, "scale_deployment"), false, true, true},
		{tool(t, "set_labels"), false, true, true},
		{tool(t, "scale_statefulset"), false, true, true},
		{tool(t, "restart_rollout"), false, true, false},
		{tool(t, "undo_rollout"), false, true, false},
		{tool(t, "pause_rollout"), false, true, true},
		{tool(t, "set_image"), false, true, false},
		{tool(t, "trigger_cronjob"), false, false, false},
		{tool(t, "suspend_cronjob"), false, true, true},
		{tool(t, "cordon_node"), false, true, true},
		{tool(t, "evict_pod"), false, true, false},
		{tool(t, "drain_node"), false, true, false},
		{scopes("update"), false, true, true},
		{scopes("get", "delete"), false, true, true},
		{&Tool{Scopes: []action.Scope{{Verbs: []string{"get"}}, {Verbs: []string{"delete"}}}}, false, true, true},
		{&Tool{}, true, false, true},
	} {
		if row.tool.ReadOnly() != row.readOnly || row.tool.Destructive() != row.destructive || row.tool.Idempotent() != row.idempotent {
			t.Errorf("%v: read-only %v, destructive %v, idempotent %v", row.tool.Scopes, row.tool.ReadOnly(), row.tool.Destructive(), row.tool.Idempotent())
		}
	}
}

// goodCalls are calls of every tool, each with a golden plan.
var goodCalls = map[string]struct{ tool, args string }{
	"list_namespaces":              {"list_namespaces", `{}`},
	"list_namespaces_narrowed":     {"list_namespaces", `{"label_selector":"team=shop","limit":5,"continue":"abc"}`},
	"list_resources":               {"list_resources", `{"kind":"deploy","namespace":"shop"}`},
	"list_resources_everywhere":    {"list_resources", `{"kind":"Pod","all_namespaces":true,"label_selector":"app=web","field_selector":"status.phase=Running","limit":500}`},
	"list_resources_cluster_scope": {"list_resources", `{"kind":"nodes"}`},
	"get_resource":                 {"get_resource", `{"kind":"cm","name":"settings","namespace":"shop"}`},
	"get_resource_cluster_scope":   {"get_resource", `{"kind":"ClusterRole","name":"system:node"}`},
	"list_resources_fields":        {"list_resources", `{"kind":"deploy","namespace":"shop","fields":["spec.replicas","{.spec.template.spec.containers[*].image}","$.metadata.name"]}`},
	"get_resource_fields":          {"get_resource", `{"kind":"deploy","name":"web","namespace":"shop","fields":["{.status.conditions[?(@.type==\"Ready\")].status}"]}`},
	"describe_resource":            {"describe_resource", `{"kind":"deploy","name":"web","namespace":"shop"}`},
	"list_clusters":                {"list_clusters", `{}`},
	"list_api_resources":           {"list_api_resources", `{"group":"apps"}`},
	"explain_resource":             {"explain_resource", `{"kind":"deploy","field":"spec.template.spec"}`},
	"check_access":                 {"check_access", `{"verb":"delete","kind":"deploy","namespace":"shop","name":"web"}`},
	"list_events":                  {"list_events", `{"namespace":"shop","kind":"deploy","name":"web","type":"Warning","since_seconds":3600}`},
	"top_pods":                     {"top_pods", `{"namespace":"shop","sort":"memory"}`},
	"top_nodes":                    {"top_nodes", `{}`},
	"diagnose_workload":            {"diagnose_workload", `{"kind":"deployment","namespace":"shop","name":"web"}`},
	"get_rollout_status":           {"get_rollout_status", `{"kind":"deployment","namespace":"shop","name":"web"}`},
	"get_rollout_history":          {"get_rollout_history", `{"kind":"deployment","namespace":"shop","name":"web"}`},
	"diff_manifest":                {"diff_manifest", `{"namespace":"shop","manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {size: \"3\"}}"}`},
	"get_pod_logs_grep":            {"get_pod_logs", `{"namespace":"shop","pod":"web-1","grep":"error|warn","timestamps":true}`},
	"get_pod_logs":                 {"get_pod_logs", `{"namespace":"shop","pod":"web-1"}`},
	"get_pod_logs_narrowed":        {"get_pod_logs", `{"namespace":"shop","pod":"web-1","container":"app","previous":true,"tail_lines":5,"since_seconds":60}`},
	"scale_deployment":             {"scale_deployment", `{"namespace":"shop","name":"web","replicas":3,"reason":"more <b>visitors</b>"}`},
	"scale_deployment_to_nothing":  {"scale_deployment", `{"namespace":"shop","name":"web","replicas":0}`},
	"delete_resource":              {"delete_resource", `{"kind":"pods","name":"web-1","namespace":"shop","reason":"stuck"}`},
	"delete_resource_at_once":      {"delete_resource", `{"kind":"deployment","name":"web","namespace":"shop","propagation":"Orphan","grace_period_seconds":0}`},
	"apply_manifest": {"apply_manifest", `{"reason":"settings","namespace":"shop","force":true,"manifest":
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {size: \"3\"}\n---\n{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"shop\"}}\n"}`},
	"apply_manifest_list": {"apply_manifest", `{"manifest":
		"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {replicas: 2}}\n- {apiVersion: v1, kind: Secret, metadata: {name: db, namespace: shop}, stringData: {password: hunter2}}\n"}`},
	"create_resource": {"create_resource", `{"reason":"migrate","namespace":"shop","manifest":
		"apiVersion: batch/v1\nkind: Job\nmetadata: {generateName: migrate-}\n---\n{apiVersion: batch/v1, kind: Job, metadata: {generateName: migrate-, namespace: shop}}\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {size: \"3\"}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n"}`},
	"patch_resource": {"patch_resource", `{"kind":"deploy","name":"web","namespace":"shop","reason":"a newer one",
		"patch":"apiVersion: apps/v1\nkind: Deployment\nmetadata: {labels: {tier: null}}\nspec: {replicas: 2}\n"}`},
	"patch_resource_strategic": {"patch_resource", `{"kind":"deploy","name":"web","namespace":"shop","type":"strategic",
		"patch":"{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"web\",\"image\":\"web:2\"}]}}}}"}`},
	"patch_resource_json": {"patch_resource", `{"kind":"ClusterRole","name":"system:node","type":"json",
		"patch":"- {op: test, path: /metadata/labels/a~1b, value: x}\n- {op: add, path: /rules/-, value: {verbs: [get]}}\n- {op: remove, path: /metadata/labels/a~1b}\n"}`},
	"set_labels":              {"set_labels", `{"kind":"deploy","namespace":"shop","name":"web","set":{"team":"shop","a.example/b":""},"remove":["tier"],"reason":"found by team"}`},
	"set_annotations":         {"set_annotations", `{"kind":"node","name":"n1","set":{"Example.com/note":"two\nlines"}}`},
	"scale_statefulset":       {"scale_statefulset", `{"namespace":"shop","name":"db","replicas":3}`},
	"restart_rollout":         {"restart_rollout", `{"kind":"deployment","namespace":"shop","name":"web","reason":"a new key"}`},
	"undo_rollout":            {"undo_rollout", `{"kind":"deployment","namespace":"shop","name":"web"}`},
	"undo_rollout_to":         {"undo_rollout", `{"kind":"daemonset","namespace":"shop","name":"agent","to_revision":2}`},
	"pause_rollout":           {"pause_rollout", `{"namespace":"shop","name":"web"}`},
	"resume_rollout":          {"resume_rollout", `{"namespace":"shop","name":"web"}`},
	"set_image":               {"set_image", `{"kind":"deployment","namespace":"shop","name":"web","image":"registry.example/web:2.0"}`},
	"set_image_init":          {"set_image", `{"kind":"cronjob","namespace":"shop","name":"report","container":"fetch","image":"fetch@sha256:0123"}`},
	"trigger_cronjob":         {"trigger_cronjob", `{"namespace":"shop","name":"report","reason":"the numbers are late"}`},
	"suspend_cronjob":         {"suspend_cronjob", `{"namespace":"shop","name":"report"}`},
	"resume_cronjob":          {"resume_cronjob", `{"namespace":"shop","name":"report"}`},
	"cordon_node":             {"cordon_node", `{"name":"n1","reason":"a broken disk"}`},
	"uncordon_node":           {"uncordon_node", `{"name":"n1"}`},
	"evict_pod":               {"evict_pod", `{"namespace":"shop","name":"web-1"}`},
	"evict_pod_in_time":       {"evict_pod", `{"namespace":"shop","name":"web-1","grace_period_seconds":0}`},
	"drain_node":              {"drain_node", `{"name":"n1","reason":"a new kernel"}`},
	"drain_node_part":         {"drain_node", `{"name":"n1","ignore_daemonsets":false,"delete_emptydir_data":true,"force":true,"pod_selector":"app=web","grace_period_seconds":5}`},
	"exec_in_pod":             {"exec_in_pod", `{"namespace":"shop","pod":"web-1","command":["cat","/etc/hosts"],"reason":"dns"}`},
	"exec_in_pod_container":   {"exec_in_pod", `{"namespace":"shop","pod":"absent","container":"side","command":["env"],"timeout_seconds":5}`},
	"list_operations":         {"list_operations", `{}`},
	"list_operations_open":    {"list_operations", `{"open_only":true}`},
	"get_operation":           {"get_operation", `{"op":"0198c0de"}`},
	"wait_for_operation":      {"wait_for_operation", `{"op":"0198c0de"}`},
	"wait_for_operation_less": {"wait_for_operation", `{"op":"0198c0de","seconds":1}`},
	"cancel_operation":        {"cancel_operation", `{"op":"0198c0de"}`},
}

// inCluster is what the cluster of goodCalls answers, by Action.String.
var inCluster = map[string]string{
	"get deployments.apps shop/web":  `{"kind":"Deployment","metadata":{"name":"web","namespace":"shop"},"spec":{"template":{"spec":{"containers":[{"name":"web","image":"registry.example/web:1.0"}]}}}}`,
	"get daemonsets.apps shop/agent": `{"kind":"DaemonSet","metadata":{"name":"agent","namespace":"shop"}}`,
	"get cronjobs.batch shop/report": `{"kind":"CronJob","metadata":{"name":"report","namespace":"shop","uid":"c0ffee"},"spec":{"schedule":"@daily","suspend":true,"jobTemplate":{
		"metadata":{"labels":{"app":"report"},"annotations":{"team":"shop"}},"spec":{"backoffLimit":2,"newField":{"a":1},"template":{"spec":{
		"restartPolicy":"Never","initContainers":[{"name":"copy","image":"copy"},{"name":"fetch","image":"fetch"}],"containers":[{"name":"report","image":"report"},{"name":"side","image":"side"}]}}}}}}`,
	"list events in namespace shop": `{"kind":"EventList","items":[{"metadata":{"namespace":"shop"},"involvedObject":{"kind":"Deployment","name":"web"},"type":"Warning","reason":"FailedCreate","message":"exceeded quota","count":3,
		"firstTimestamp":"2026-03-14T11:00:00Z","lastTimestamp":"2026-03-14T11:58:00Z"}]}`,
	"list pods.metrics.k8s.io in namespace shop": `{"items":[{"metadata":{"name":"web-1","namespace":"shop"},"containers":[{"usage":{"cpu":"250m","memory":"128Mi"}},{"usage":{"cpu":"1","memory":"64Mi"}}]}]}`,
	"list nodes.metrics.k8s.io":                  `{"items":[{"metadata":{"name":"n1"},"usage":{"cpu":"1","memory":"1Gi"}}]}`,
	"list nodes":                                 `{"items":[{"metadata":{"name":"n1"},"status":{"allocatable":{"cpu":"4","memory":"8Gi"}}}]}`,
	"list replicasets.apps in namespace shop":    `{"items":[]}`,
	"list pods in namespace shop":                `{"items":[]}`,
	kubectlDescription:                           "Name: web\n",
	kubectlHistory:                               "REVISION  CHANGE-CAUSE\n1  <none>\n2  <none>\n",
	"get nodes n1":                               `{"kind":"Node","metadata":{"name":"n1"}}`,
	"get pods shop/web-1":                        `{"kind":"Pod","metadata":{"annotations":{"kubectl.kubernetes.io/default-container":"web"}},"spec":{"containers":[{"name":"side"},{"name":"web"}]}}`,
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestPlans(t *testing.T) {
	planned := map[string]bool{}
	for name, row := range goodCalls {
		tool := tool(t, row.tool)
		planned[row.tool] = true
		call, err := planIn(t, tool, inCluster, row.args)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, a := range call.Plan.Actions {
			if !slices.ContainsFunc(tool.Scopes, func(s action.Scope) bool { return s.Covers(a) }) {
				t.Errorf("%s: %s is outside the tool's scopes", name, a)
			}
			if a.Cluster != "local" {
				t.Errorf("%s: %s is for cluster %q", name, a, a.Cluster)
			}
		}
		if kinds := boolToInt(call.Operation != nil) + boolToInt(call.Answer != "") + boolToInt(len(call.Plan.Actions) > 0); kinds != 1 {
			t.Errorf("%s: a call is a plan, an answer, or about operations: %+v", name, call)
		}
		golden(t, "plans/"+name+".json", indented(t, call))
	}
	for _, tool := range All([]string{"local"}) {
		if !planned[tool.Name] {
			t.Errorf("no call of %s has a golden plan", tool.Name)
		}
	}
	files, err := os.ReadDir("testdata/plans")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, used := goodCalls[strings.TrimSuffix(file.Name(), ".json")]; !used {
			t.Errorf("testdata/plans/%s is of no call", file.Name())
		}
	}
}

// What is recorded and shown to policy never holds a manifest or a patch.
func TestRecordable(t *testing.T) {
	for of, name := range map[string]string{"apply_manifest": "manifest", "create_resource": "manifest", "patch_resource": "patch"} {
		args := map[string]any{name: "stringData: {password: hunter2}", "reason": "because"}
		before := maps.Clone(args)
		got := tool(t, of).Recordable(args)
		if got[name] != "(31 bytes, recorded as the payload)" || got["reason"] != "because" || !maps.Equal(args, before) {
			t.Errorf("%s: got %v, input now %v", of, got, args)
		}
	}
}

// A plan that goes beyond what its tool may do is a bug of ours, and stops here.
func TestPlanOutsideScopes(t *testing.T) {
	rogue := tool(t, "get_resource")
	rogue.Scopes = []action.Scope{{Verbs: []string{action.List}}}
	if call, err := plan(t, rogue, `{"kind":"pods","name":"web","namespace":"shop"}`); err == nil || len(call.Plan.Actions) != 0 {
		t.Errorf("got %+v, %v", call, err)
	}
}

// docs/tools.md names every tool, with each of its arguments and no other, and
// says of each whether it may be left out.
func TestToolsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/tools.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range All([]string{"local"}) {
		var schema struct {
			Properties map[string]any
			Required   []string
		}
		if err := json.Unmarshal(tool.Schema, &schema); err != nil {
			t.Fatal(err)
		}
		var rows []string
		for line := range strings.Lines(string(page)) {
			if cells := strings.Split(line, "|"); len(cells) > 3 && strings.Contains(cells[1], "`"+tool.Name+"`") {
				rows = append(rows, cells[2])
			}
		}
		if len(rows) == 0 && len(tool.Scopes) == 0 && strings.Contains(string(page), "`"+tool.Name+"`") {
			continue // the tools about operations stand in a sentence
		}
		if len(rows) != 1 {
			t.Errorf("%s has %d rows", tool.Name, len(rows))
			continue
		}
		for name := range schema.Properties {
			written := "`" + name + "?`"
			if slices.Contains(schema.Required, name) {
				written = "`" + name + "`"
			}
			if name != "reason" && !strings.Contains(rows[0], written) {
				t.Errorf("%s: its row does not have %s", tool.Name, written)
			}
		}
		for _, written := range regexp.MustCompile("`([a-z_]+)\\??`").FindAllStringSubmatch(rows[0], -1) {
			if schema.Properties[written[1]] == nil {
				t.Errorf("%s: its row has %s, which it does not take", tool.Name, written[0])
			}
		}
	}
}
