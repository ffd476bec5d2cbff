package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"

	"countersign/action"
	"countersign/e2e/rig"
	"countersign/tools"
)

// calls remembers of each operation in the scripts' logs whose tool it was of.
type calls struct {
	mu   sync.Mutex
	tool map[string]string
}

var called = calls{tool: map[string]string{}}

func (c *calls) add(records []rig.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range records {
		if (r.Type == "tool.intent" || r.Type == "approval.requested") && r.Tool != nil && c.tool[r.Op] == "" { // the first is of the call itself
			c.tool[r.Op] = r.Tool.Name
		}
	}
}

// TestTools has a script for each tool: a good call, a refused one, a bad one,
// and what the log says of each. After all of them, the API server's own audit
// log tells whether each tool did what its hints say.
func TestTools(t *testing.T) {
	const folder = "testdata/tools"
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range tools.All([]string{"local"}) {
		names = append(names, tool.Name)
		if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return f.Name() == tool.Name+".txtar" }) {
			t.Errorf("tool %s has no script in %s", tool.Name, folder)
		}
	}
	for _, f := range files {
		if !slices.Contains(names, strings.TrimSuffix(f.Name(), ".txtar")) {
			t.Errorf("%s/%s is of no tool", folder, f.Name())
		}
	}
	whole := true
	t.Run("scripts", func(t *testing.T) {
		t.Cleanup(func() { whole = !t.Failed() })
		testscript.Run(t, scripts(folder))
	})
	if !whole || t.Failed() {
		return // what did not run cannot be judged
	}
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // only some of the scripts ran
	}
	requests := requestsByTool(t)
	for _, tool := range tools.All([]string{"local"}) {
		checkHints(t, tool, requests[tool.Name])
	}
}

// request is what the API server's audit log says of one request.
type request struct {
	AuditID, Verb, RequestURI, Stage string
	ObjectRef                        struct{ Resource, Subresource, APIGroup string }
	ResponseStatus                   struct{ Code int }
}

func (r request) dryRun() bool { return strings.Contains(r.RequestURI, "dryRun=All") }

// requestsByTool are the requests that did something real, or could have.
func requestsByTool(t *testing.T) map[string][]request {
	t.Helper()
	f, err := os.Open(world.cluster.AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]request{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var r request
		if json.Unmarshal(lines.Bytes(), &r) != nil || r.Stage == "RequestReceived" || r.Stage == "ResponseStarted" {
			continue
		}
		op, _, _ := strings.Cut(r.AuditID, ".")
		if tool := called.tool[op]; tool != "" && !r.dryRun() {
			out[tool] = append(out[tool], r)
		}
	}
	return out
}

// checkHints compares what a tool says of itself with what it did.
func checkHints(t *testing.T, tool *tools.Tool, requests []request) {
	t.Helper()
	var changes, takes []string
	for _, r := range requests {
		text := fmt.Sprintf("%s %s.%s/%s", r.Verb, r.ObjectRef.Resource, r.ObjectRef.APIGroup, r.ObjectRef.Subresource)
		switch r.Verb {
		case "get", "list":
			if r.ObjectRef.Subresource == "exec" { // over a web socket it begins as a GET
				changes, takes = append(changes, text), append(takes, text)
			}
		case "create":
			changes = append(changes, text)
			if r.ObjectRef.Subresource == "eviction" || r.ObjectRef.Subresource == "exec" {
				takes = append(takes, text)
			}
		default: // what it replaces is gone
			changes, takes = append(changes, text), append(takes, text)
		}
	}
	about := slices.ContainsFunc(tool.Scopes, func(s action.Scope) bool { return !s.ReadOnly() })
	switch {
	case tool.ReadOnly() && len(changes) > 0:
		t.Errorf("%s calls itself read-only and sent %v", tool.Name, changes)
	case !tool.ReadOnly() && about && len(changes) == 0:
		t.Errorf("%s calls itself changing, and its script shows no change", tool.Name)
	case !tool.Destructive() && len(takes) > 0:
		t.Errorf("%s does not call itself destructive and sent %v", tool.Name, takes)
	case tool.Destructive() && len(takes) == 0:
		t.Errorf("%s calls itself destructive, and its script shows nothing of the kind", tool.Name)
	}
}

// A tool that calls itself idempotent leaves the same object when it is called twice.
func TestIdempotentTools(t *testing.T) {
	s := newStageWith(t, "  - {name: all, effect: allow}")
	run := func(stdin string, args ...string) string {
		t.Helper()
		out, err := world.cluster.Run(s.ctx, stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	node := "twice-" + s.namespace
	t.Cleanup(func() { world.cluster.Run(context.Background(), "", "delete", "node", node) })
	run(fmt.Sprintf(`{apiVersion: v1, kind: List, items: [
		{apiVersion: v1, kind: Node, metadata: {name: %[2]s}},
		{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db, namespace: %[1]s}, spec: {serviceName: db, replicas: 0, selector: {matchLabels: {app: db}},
			template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: a}]}}}},
		{apiVersion: batch/v1, kind: CronJob, metadata: {name: nightly, namespace: %[1]s}, spec: {schedule: "0 0 1 1 *",
			jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: a}]}}}}}}]}`, s.namespace, node), "apply", "-f", "-")
	manifest := "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {size: \"3\"}}"
	named := fmt.Sprintf(`"namespace":%q,"name":"web"`, s.namespace)
	rows := map[string]struct{ args, object string }{
		"apply_manifest":    {fmt.Sprintf(`{"namespace":%q,"manifest":%q}`, s.namespace, manifest), "configmap/settings"},
		"scale_deployment":  {`{` + named + `,"replicas":3}`, "deployment/web"},
		"scale_statefulset": {fmt.Sprintf(`{"namespace":%q,"name":"db","replicas":1}`, s.namespace), "statefulset/db"},
		"set_labels":        {`{"kind":"deployment",` + named + `,"set":{"tier":"front"},"remove":["other"]}`, "deployment/web"},
		"set_annotations":   {`{"kind":"deployment",` + named + `,"set":{"example.com/owner":"shop"}}`, "deployment/web"},
		"pause_rollout":     {`{` + named + `}`, "deployment/web"},
		"resume_rollout":    {`{` + named + `}`, "deployment/web"},
		"suspend_cronjob":   {fmt.Sprintf(`{"namespace":%q,"name":"nightly"}`, s.namespace), "cronjob/nightly"},
		"resume_cronjob":    {fmt.Sprintf(`{"namespace":%q,"name":"nightly"}`, s.namespace), "cronjob/nightly"},
		"cordon_node":       {fmt.Sprintf(`{"name":%q}`, node), "node/" + node},
		"uncordon_node":     {fmt.Sprintf(`{"name":%q}`, node), "node/" + node},
		"delete_resource":   {fmt.Sprintf(`{"kind":"configmap","namespace":%q,"name":"settings"}`, s.namespace), ""},
	}
	state := func(object string) string {
		if object == "" {
			return ""
		}
		text := run("", "get", object, "-n", s.namespace, "-o", "json")
		var decoded map[string]any
		if err := json.Unmarshal([]byte(text), &decoded); err != nil {
			t.Fatal(err)
		}
		meta := decoded["metadata"].(map[string]any)
		for _, field := range []string{"managedFields", "resourceVersion"} { // controllers report meanwhile
			delete(meta, field)
		}
		for key := range meta {
			if key == "annotations" {
				delete(meta["annotations"].(map[string]any), "deployment.kubernetes.io/revision")
			}
		}
		delete(decoded, "status")
		canonical, err := action.Canonical(decoded)
		if err != nil {
			t.Fatal(err)
		}
		return string(canonical)
	}
	for _, tool := range tools.All([]string{"local"}) {
		row, ok := rows[tool.Name]
		if tool.ReadOnly() || !tool.Idempotent() || len(tool.Scopes) == 0 {
			if ok {
				t.Errorf("%s does not call itself idempotent", tool.Name)
			}
			continue
		}
		if !ok {
			t.Errorf("%s calls itself idempotent, and no row shows it", tool.Name)
			continue
		}
		if tool.Name == "delete_resource" {
			run(fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: settings, namespace: %s}}", s.namespace), "apply", "-f", "-")
		}
		var before string
		for try := range 2 {
			answer, err := s.agent.Call(s.ctx, tool.Name, row.args)
			gone := tool.Name == "delete_resource" && try == 1
			if err != nil || answer.IsError != gone {
				t.Errorf("%s: %v %s", tool.Name, err, answer.Text)
				break
			}
			if now := state(row.object); try == 0 {
				before = now
			} else if now != before {
				t.Errorf("%s, called twice, made\n%s\nof\n%s", tool.Name, now, before)
			}
		}
	}
}

// manyPods is how many pods a list has to cope with.
const manyPods = 5000

// fillNamespace makes pods that no scheduler takes, so that they stay as they are.
func fillNamespace(ctx context.Context, namespace string, n int) error {
	client := adminClient()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range n {
		group.Go(func() error {
			body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"checkout-7d9f8b6c5d-","labels":{"app":"checkout","shard":"%d"}},
				"spec":{"schedulerName":"none","containers":[{"name":"app","image":"registry.example/checkout:1.0"}]}}`, i%50)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, world.cluster.Server+"/api/v1/namespaces/"+namespace+"/pods", strings.NewReader(body))
			if err != nil {
				return err
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode != http.StatusCreated {
				err = fmt.Errorf("creating a pod: %s", text)
			}
			return err
		})
	}
	return group.Wait()
}

// A list over 5,000 pods fits a context, and says how many there are and how to go on.
func TestListOfManyPods(t *testing.T) {
	s := newStageWith(t, "  - {name: all, effect: allow}")
	if err := fillNamespace(s.ctx, s.namespace, manyPods); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ args, want string }{
		{`{"kind":"pods","namespace":%q}`, "100 of 500"}, // and the two of the Deployment
		{`{"kind":"pods","namespace":%q,"limit":500}`, "of 500"},
		{`{"kind":"pods","namespace":%q,"fields":["spec.containers[*].image","metadata.labels"]}`, "100 of 500"},
		{`{"kind":"pods","namespace":%q,"label_selector":"shard=7"}`, "checkout-"},
	} {
		answer, err := s.agent.Call(s.ctx, "list_resources", fmt.Sprintf(row.args, s.namespace))
		if err != nil || answer.IsError || !strings.Contains(answer.Text, row.want) {
			t.Errorf("%s: %v %.2000s", row.args, err, answer.Text)
		}
		if len(answer.Text) > 32<<10 {
			t.Errorf("%s: the answer is %d bytes", row.args, len(answer.Text))
		}
		t.Logf("%s: %d bytes", row.args, len(answer.Text))
	}
}

// adminClient sends what the tests themselves want of the API server.
func adminClient() *http.Client {
	pool := x509.NewCertPool()
	if ca, err := os.ReadFile(world.cluster.CA); err == nil {
		pool.AppendCertsFromPEM(ca)
	}
	return &http.Client{Transport: asAdmin{&http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 16,
	}}}
}

type asAdmin struct{ next http.RoundTripper }

func (a asAdmin) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+world.admin)
	return a.next.RoundTrip(req)
}
