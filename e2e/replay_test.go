package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"countersign/e2e/rig"
)

// replayRules are a policy under which every way of deciding occurs.
const replayRules = `
  rules:
  - {name: read, effect: allow, match: {verbs: [get, list], resources: ["*", "!secrets"]}}
  - {name: scale, effect: allow, match: {tools: [scale_deployment]}, when: object.spec.replicas <= 10}
  - {name: jobs, effect: allow, match: {tools: [create_resource], resources: [jobs.batch]}}
  - {name: labels, effect: allow, match: {tools: [set_labels], resources: [configmaps]}}
  - {name: others, effect: require_approval, match: {tools: [apply_manifest, delete_resource, patch_resource]}, approval: {approvers: [operators]}}
  - {name: keep, effect: deny, match: {verbs: [delete], resources: [namespaces]}}
`

// The values that nobody may find anywhere but in the cluster that they are for.
const (
	replayPassword = "hunter2-of-the-replay"
	replayToken    = "dG9rZW4tb2YtdGhlLXJlcGxheQ==" // token-of-the-replay
)

// A session that reads, changes, is denied, asks and is rejected ends in a second,
// empty control plane with the same objects; where one is tampered with, that is
// what the report says; and the cluster that it ran against is refused.
func TestReplay(t *testing.T) {
	t.Parallel()
	s := prepareStage(t, replayRules)
	s.start()
	running := true
	t.Cleanup(func() {
		if running {
			s.server.Stop()
		}
	})
	s.connect()
	if _, err := world.cluster.Run(s.ctx, "", "-n", s.namespace, "create", "configmap", "old", "--from-literal=key=value"); err != nil {
		t.Fatal(err)
	}
	r := &replays{s}

	r.call("list_resources", `{"kind":"deploy","namespace":"NS"}`, "")
	r.call("scale_deployment", `{"namespace":"NS","name":"web","replicas":5}`, "succeeded")
	r.call("delete_resource", `{"kind":"namespace","name":"NS"}`, "denied")
	r.approved("apply_manifest", `{"namespace":"NS","force":true,"manifest":`+quote(webManifest)+`}`)
	r.approved("apply_manifest", `{"namespace":"NS","manifest":`+quote(secretManifest)+`}`)
	r.approved("patch_resource", `{"kind":"deploy","namespace":"NS","name":"web","type":"json","patch":"[{\"op\":\"add\",\"path\":\"/metadata/labels\",\"value\":{\"team\":\"shop\"}}]"}`)
	r.approved("patch_resource", `{"kind":"secret","namespace":"NS","name":"db","type":"json","patch":"[{\"op\":\"add\",\"path\":\"/data/second\",\"value\":\"`+replayToken+`\"}]"}`)
	r.approved("delete_resource", `{"kind":"configmap","namespace":"NS","name":"old"}`)
	r.call("create_resource", `{"namespace":"NS","manifest":`+quote(jobManifest)+`}`, "succeeded")
	pending := r.call("delete_resource", `{"kind":"deploy","namespace":"NS","name":"web"}`, "pending_approval")
	if _, err := s.server.Run(s.ctx, "approvals", "reject", pending.Structured.Op, "--reason", "no"); err != nil {
		t.Fatal(err)
	}
	first := r.session()
	s.connect() // another session
	r.call("set_labels", `{"kind":"configmap","namespace":"NS","name":"settings","set":{"seen":"yes"}}`, "succeeded")
	second := r.session()
	if first == second || first == "" {
		t.Fatalf("two sessions are %q and %q", first, second)
	}

	// Line 38: the cluster that it ran against is refused, and only looked at; also by
	// another way there.
	for _, kubeconfig := range []string{world.cluster.Kubeconfig, s.proxy.Kubeconfig} {
		out, errOut, code := r.replay(kubeconfig, first)
		if code != 1 || !strings.Contains(errOut, `refused: the sandbox is the cluster "local"`) || out != "" {
			t.Fatalf("replay in the source cluster: code %d: %s%s", code, out, errOut)
		}
	}
	looked := false
	for _, e := range auditEvents(t, world.cluster.AuditLog) {
		if strings.HasPrefix(e.UserAgent, "countersign-replay/") {
			looked = true
			if e.Verb != "get" {
				t.Errorf("a replay in the source cluster sent %s %s", e.Verb, e.RequestURI)
			}
		}
	}
	if !looked {
		t.Fatal("the audit log of the source cluster shows no replay at all")
	}

	sandbox, err := rig.StartControlPlane(s.ctx, t.TempDir(), audience, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sandbox.Close() })

	// In an empty cluster it ends with the same objects.
	out, errOut, code := r.replay(sandbox.Kubeconfig, first)
	if code != 0 {
		t.Fatalf("replay in an empty cluster: code %d: %s%s", code, out, errOut)
	}
	for _, want := range []string{
		"prepared  namespaces " + s.namespace, "prepared  deployments.apps " + s.namespace + "/web", "prepared  configmaps " + s.namespace + "/old",
		"delete_resource: policy denied it", "delete_resource: it was rejected", "list_resources: it was a read",
		"same      at the end: secrets " + s.namespace + "/db", "same      at the end: jobs.batch " + s.namespace + "/report-",
		"stand-ins at ", " 0 diverged",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the report does not say %q:\n%s", want, out)
		}
	}
	for _, what := range [][]string{
		{"deployments", "{range .items[*]}{.metadata.name} {.metadata.labels} {.spec}{end}"},
		{"jobs", "{range .items[*]}{.metadata.name} {.spec.template.spec}{end}"},
		{"configmaps", `{range .items[?(@.metadata.name!="kube-root-ca.crt")]}{.metadata.name} {.data}{end}`},
		{"secrets", "{range .items[*]}{.metadata.name} {.type}{end}"},
	} {
		args := []string{"get", what[0], "-n", s.namespace, "-o", "jsonpath=" + what[1]}
		here, err := world.cluster.Run(s.ctx, "", args...)
		if err != nil {
			t.Fatal(err)
		}
		there, err := sandbox.Run(s.ctx, "", args...)
		if what[0] == "configmaps" { // labelled by the second session, and not compared here
			continue
		}
		if here = strings.ReplaceAll(here, replayPassword, "countersign-stand-in"); err != nil || here != there || here == "" {
			t.Errorf("%s:\n%s\nin the sandbox:\n%s %v", what[0], here, there, err)
		}
	}

	// Line 20: no secret value is anywhere but where it was.
	all, err := sandbox.Run(s.ctx, "", "get", "secrets,configmaps,deployments,jobs,events", "-n", s.namespace, "-o", "json", "--show-managed-fields")
	if err != nil {
		t.Fatal(err)
	}
	r.noSecrets("the sandbox", all)
	if keys, err := sandbox.Run(s.ctx, "", "get", "secret", "db", "-n", s.namespace, "-o", "jsonpath={.data.second} {.data.password} {.data.url}"); err != nil || len(strings.Fields(keys)) != 3 {
		t.Errorf("the Secret has not every key: %q %v", keys, err)
	}

	// An object that was there before and nobody looked at is told as that.
	if _, err := sandbox.Run(s.ctx, "", "delete", "configmap", "settings", "-n", s.namespace); err != nil {
		t.Fatal(err)
	}
	out, errOut, code = r.replay(sandbox.Kubeconfig, second)
	if code != 3 || !strings.Contains(out, "how it was is not on record: put it into the sandbox with kubectl") || !strings.Contains(errOut, "differs from the record in 2 places") {
		t.Errorf("replay without the object: code %d: %s%s", code, out, errOut)
	}

	// One object that was tampered with is what is reported, also from the log of a
	// stopped server.
	running = false
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := sandbox.Run(s.ctx, "", "delete", "namespace", s.namespace); err != nil {
		t.Fatal(err)
	}
	tampered := fmt.Sprintf(`{apiVersion: v1, kind: List, items: [
		{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s}},
		{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: %[1]s}, spec: {replicas: 2,
			selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}},
			spec: {hostNetwork: true, containers: [{name: web, image: "registry.example/web:1.0", env: [{name: DB_PASSWORD, value: %[2]s}]}]}}}}]}`, s.namespace, replayPassword)
	if _, err := sandbox.Run(s.ctx, tampered, "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	out, errOut, code = r.replay(sandbox.Kubeconfig, first, "-o", "json")
	if code != 3 || !strings.Contains(errOut, "differs from the record") {
		t.Fatalf("replay with a tampered object: code %d: %s%s", code, out, errOut)
	}
	var report struct {
		Steps []struct {
			Result, Action string
			Differences    []struct{ Path string }
		}
		Final []struct {
			Result, Object string
			Differences    []struct {
				Path              string
				Recorded, Sandbox any
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	same := 0
	for _, o := range report.Final {
		if o.Object != "deployments.apps "+s.namespace+"/web" {
			if same++; o.Result != "same" {
				t.Errorf("%s is %s, and was not tampered with: %+v", o.Object, o.Result, o.Differences)
			}
			continue
		}
		found := slices.ContainsFunc(o.Differences, func(d struct {
			Path              string
			Recorded, Sandbox any
		}) bool {
			return d.Path == "/spec/template/spec/hostNetwork" && d.Recorded == nil && d.Sandbox == true
		})
		if o.Result != "diverged" || !found {
			t.Errorf("%s is %s: %+v", o.Object, o.Result, o.Differences)
		}
	}
	if same < 4 {
		t.Errorf("%d other objects are compared at the end: %s", same, out)
	}
	for _, step := range report.Steps {
		if step.Result == "diverged" && !strings.HasSuffix(step.Action, s.namespace+"/web") {
			t.Errorf("%s diverged, and was not tampered with: %+v", step.Action, step.Differences)
		}
	}

	// What cannot be told is refused.
	for _, bad := range []struct {
		args []string
		want string
	}{
		{[]string{"no-such-session", "--kubeconfig", sandbox.Kubeconfig}, "no record of a session"},
		{[]string{first, "--kubeconfig", sandbox.Kubeconfig, "--cluster", "other"}, `changed nothing in a cluster "other"; it did in: local`},
		{[]string{first, "--kubeconfig", ""}, "--kubeconfig is empty"},
		{[]string{first}, `required flag(s) "kubeconfig" not set`},
		{[]string{first, "--kubeconfig", filepath.Join(t.TempDir(), "none")}, "no such file"},
	} {
		if _, err := s.server.Run(s.ctx, append([]string{"audit", "replay"}, bad.args...)...); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("replay %v: %v", bad.args, err)
		}
	}
}

const (
	webManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "registry.example/web:1.1"}]}
`
	secretManifest = `
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData: {password: ` + replayPassword + `, url: "postgres://app:` + replayPassword + `@db/shop"}
data: {token: ` + replayToken + `}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, DB_PASSWORD: ` + replayPassword + `}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  replicas: 1
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: api, image: "registry.example/api:1", env: [{name: DB_PASSWORD, value: ` + replayPassword + `}]}]}
`
	jobManifest = `
apiVersion: batch/v1
kind: Job
metadata: {generateName: report-}
spec:
  template:
    spec: {restartPolicy: Never, containers: [{name: report, image: "registry.example/report:1"}]}
`
)

func quote(text string) string {
	data, _ := json.Marshal(text)
	return string(data)
}

// replays are what the test of replay does over and over.
type replays struct{ *stage }

// call makes a call about the namespace NS and expects its status.
func (r *replays) call(tool, arguments, status string) rig.Answer {
	r.Helper()
	answer, err := r.agent.Call(r.ctx, tool, strings.ReplaceAll(arguments, `"NS"`, `"`+r.namespace+`"`))
	if err != nil || answer.Structured.Status != status {
		r.Fatalf("%s: %v, %s", tool, err, answer.Text)
	}
	return answer
}

// approved makes a call that a person approves.
func (r *replays) approved(tool, arguments string) {
	r.Helper()
	op := r.call(tool, arguments, "pending_approval").Structured.Op
	if _, err := r.server.Run(r.ctx, "approvals", "approve", op); err != nil {
		r.Fatal(err)
	}
	r.call("wait_for_operation", `{"op":"`+op+`"}`, "succeeded")
}

// session is that of the latest record that has one.
func (r *replays) session() (id string) {
	r.Helper()
	records, err := r.server.Export(r.ctx)
	if err != nil {
		r.Fatal(err)
	}
	for _, record := range records {
		if record.Session != "" {
			id = record.Session
		}
	}
	return id
}

// replay replays a session, and sees that no secret value is in what it prints.
func (r *replays) replay(kubeconfig, session string, args ...string) (out, errOut string, code int) {
	r.Helper()
	out, err := r.server.Run(r.ctx, append([]string{"audit", "replay", session, "--kubeconfig", kubeconfig}, args...)...)
	if err != nil {
		errOut = err.Error()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			r.Fatal(err)
		}
		code = exit.ExitCode()
	}
	r.noSecrets("the report", out+errOut)
	return out, errOut, code
}

func (r *replays) noSecrets(where, text string) {
	r.Helper()
	for _, value := range []string{replayPassword, "aHVudGVyMi1vZi10aGUtcmVwbGF5", replayToken, "token-of-the-replay"} {
		if strings.Contains(text, value) {
			r.Errorf("%s holds the secret value %s:\n%s", where, value, text)
		}
	}
}

// auditEvent is a request as the API server's audit log has it.
type auditEvent struct {
	Verb       string `json:"verb"`
	RequestURI string `json:"requestURI"`
	UserAgent  string `json:"userAgent"`
}

func auditEvents(t *testing.T, path string) (events []auditEvent) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e auditEvent
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			events = append(events, e)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return events
}
