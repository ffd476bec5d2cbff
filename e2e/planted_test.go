package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"countersign/audit/audittest"
	"countersign/e2e/rig"
)

// inChunks is how many texts are planted at once: what they make fits into one answer.
const inChunks = 28

// plant puts texts into every place of the cluster that an agent can read, as
// an administrator, and gives the calls that read them.
func plant(s *stage, texts []string) []string {
	s.Helper()
	run := func(stdin string, args ...string) {
		s.Helper()
		if _, err := world.cluster.Run(s.ctx, stdin, args...); err != nil {
			s.Fatal(err)
		}
	}
	data, binary, annotations, secret := map[string]any{}, map[string]any{}, map[string]any{}, map[string]any{}
	var env, args, events []any
	var log strings.Builder
	for i, text := range texts {
		key := fmt.Sprintf("settings-%d.txt", i)
		data[key], secret[key] = text, text
		binary["binary-"+key] = base64.StdEncoding.EncodeToString([]byte("note: " + text))
		annotations[fmt.Sprintf("example.com/note-%d", i)] = text
		env = append(env, map[string]any{"name": fmt.Sprintf("SETTING_%d", i), "value": text})
		args = append(args, text)
		events = append(events, map[string]any{
			"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"generateName": "planted-", "namespace": s.namespace},
			"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "planted", "namespace": s.namespace},
			"reason":         fmt.Sprintf("Planted%d", i), "message": text[:min(len(text), 1000)], "type": "Warning",
		})
		fmt.Fprintf(&log, "2026-11-22T17:00:00.000000000Z stdout F payload=%s\n", base64.StdEncoding.EncodeToString([]byte(text)))
		for line := range strings.Lines(text) {
			fmt.Fprintf(&log, "2026-11-22T17:00:00.000000000Z stdout F %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	objects, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": []any{
		map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "planted"}, "stringData": secret},
		map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "planted"}, "data": data, "binaryData": binary},
		map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "planted", "annotations": annotations}, "spec": map[string]any{
			"containers": []any{map[string]any{"name": "app", "image": "a", "env": env, "args": args}},
		}},
	}})
	if err != nil {
		s.Fatal(err)
	}
	run("", "delete", "pod,secret,configmap", "planted", "-n", s.namespace, "--ignore-not-found", "--now")
	run(string(objects), "apply", "-n", s.namespace, "-f", "-") // which repeats them in last-applied
	run("", "wait", "--for=condition=Ready", "pod/planted", "-n", s.namespace)
	run("", "delete", "--raw", "/api/v1/namespaces/"+s.namespace+"/events") // all in one request
	list, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": events})
	if err != nil {
		s.Fatal(err)
	}
	run(string(list), "create", "-f", "-")
	// Every simulated pod has the same log.
	if err := os.WriteFile(filepath.Join(filepath.Dir(world.cluster.AuditLog), "pod.log"), []byte(log.String()), 0o600); err != nil {
		s.Fatal(err)
	}
	in := fmt.Sprintf(`"namespace":%q`, s.namespace)
	calls := []string{
		`get_resource {"kind":"secret","name":"planted",` + in + `}`,
		`get_resource {"kind":"secret","name":"planted",` + in + `,"fields":["data","{.metadata.annotations}"]}`,
		`list_resources {"kind":"secrets",` + in + `}`,
		`list_resources {"kind":"secrets",` + in + `,"fields":["data"]}`,
		`describe_resource {"kind":"secret","name":"planted",` + in + `}`,
		`get_resource {"kind":"configmap","name":"planted",` + in + `}`,
		`get_resource {"kind":"configmap","name":"planted",` + in + `,"fields":["data","binaryData"]}`,
		`list_resources {"kind":"configmaps",` + in + `,"fields":["data"]}`,
		`describe_resource {"kind":"configmap","name":"planted",` + in + `}`,
		`get_resource {"kind":"pod","name":"planted",` + in + `}`,
		`get_resource {"kind":"pod","name":"planted",` + in + `,"fields":["spec.containers[*].env[*].value","spec.containers[0].args"]}`,
		`list_resources {"kind":"pods",` + in + `,"fields":["spec.containers[*].env[*].value"]}`,
		`describe_resource {"kind":"pod","name":"planted",` + in + `}`,
		`list_events {` + in + `}`,
		`get_pod_logs {"pod":"planted",` + in + `,"tail_lines":5000}`,
		`get_pod_logs {"pod":"planted",` + in + `,"grep":"."}`,
		`exec_in_pod {"pod":"planted",` + in + `,"container":"app","command":["cat","/var/log/app.log"]}`,
		`diagnose_workload {"kind":"pod","name":"planted",` + in + `}`,
	}
	// What an approver is shown, and what a dry run would change.
	all, _ := json.Marshal(data)
	manifest, _ := json.Marshal(fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"planted-too"},"data":%s}`, all))
	notes, _ := json.Marshal(annotations)
	calls = append(calls,
		fmt.Sprintf(`set_annotations {"kind":"configmap","name":"planted",%s,"set":%s,"reason":"planted"}`, in, notes),
		fmt.Sprintf(`diff_manifest {%s,"manifest":%s}`, in, manifest),
	)
	for i, text := range texts {
		quoted, _ := json.Marshal(text)
		// What a command is given; what the API server quotes when it refuses; reasons.
		labels, _ := json.Marshal(fmt.Sprintf(`{"metadata":{"labels":{"a":%s}}}`, quoted))
		calls = append(calls,
			fmt.Sprintf(`exec_in_pod {"pod":"planted",%s,"container":"app","command":["echo",%s]}`, in, quoted), // refused
			fmt.Sprintf(`patch_resource {"kind":"configmap","name":"planted",%s,"patch":%s}`, in, labels),
			fmt.Sprintf(`get_resource {"kind":%s,"name":"a"}`, quoted),
			fmt.Sprintf(`list_resources {"kind":"pods",%s,"label_selector":%s}`, in, quoted),
			fmt.Sprintf(`scale_deployment {%s,"name":"web","replicas":%d,"reason":%s}`, in, i, quoted[:min(len(quoted), 300)]),
		)
	}
	return slices.DeleteFunc(calls, func(call string) bool {
		_, args, _ := strings.Cut(call, " ")
		return !json.Valid([]byte(args)) // a reason that was cut
	})
}

const plantedRules = `  - {name: all, effect: allow, match: {verbs: [get, list, create, patch], resources: ["*"], subresources: ["", exec, log, scale], tools: ["*", "!set_annotations"]}}
  - {name: asked, effect: require_approval, match: {tools: [set_annotations]}, approval: {approvers: [operators]}}
`

// readPlanted makes the calls and gives what every reader got to see: the agent's
// answers, what approvers were shown, the export, the store's bytes and the server's log.
func readPlanted(s *stage, calls []string) map[string]string {
	s.Helper()
	seen := map[string]string{}
	for _, call := range calls {
		tool, args, _ := strings.Cut(call, " ")
		answer, err := s.agent.Call(s.ctx, tool, args)
		if err != nil {
			answer.Text = err.Error()
		}
		seen[call] = answer.Text
		if answer.Structured.Status == "pending_approval" {
			text, err := s.server.Run(s.ctx, "approvals", "show", answer.Structured.Op)
			if err != nil {
				s.Fatal(err)
			}
			seen["what the approver of "+answer.Structured.Op+" sees"] = text
		}
	}
	return seen
}

// Nothing of 60 planted secrets and more, of 20 kinds and more, in Secrets, ConfigMaps,
// environments, annotations, arguments, events, logs and output of commands,
// appears in any answer, record, message or error, also not as base64.
func TestPlantedSecrets(t *testing.T) {
	s, log := plantedStage(t)
	planted := audittest.Planted()
	kinds := map[string]bool{}
	for chunk := range slices.Chunk(planted, inChunks) {
		texts := make([]string, len(chunk))
		for i, secret := range chunk {
			texts[i], kinds[secret.Kind] = secret.Text, true
		}
		asked := false
		for where, text := range readPlanted(s, plant(s, texts)) {
			asked = asked || strings.HasPrefix(where, "what the approver")
			for _, secret := range chunk {
				if leaks(text, secret.Value) {
					t.Errorf("%s is seen in the answer to %.300s:\n%.3000s", secret.Kind, where, text)
				}
			}
		}
		if !asked {
			t.Error("no approver was asked about what was planted")
		}
	}
	if len(planted) < 60 || len(kinds) < 20 {
		t.Errorf("only %d secrets of %d kinds are planted", len(planted), len(kinds))
	}
	export, err := s.server.Run(s.ctx, "audit", "export")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	store, err := os.ReadFile(filepath.Join(filepath.Dir(s.server.Config), "data", "countersign.db"))
	if err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"the export": export, "the store": string(store), "the server's own log": string(said)} {
		for _, secret := range planted {
			if leaks(text, secret.Value) {
				at := strings.Index(text, secret.Value)
				t.Errorf("%s is seen in %s: %.200s", secret.Kind, where, text[max(at-200, 0):])
			}
		}
	}
}

func plantedStage(t *testing.T) (*stage, string) {
	t.Helper()
	s := newStageWith(t, plantedRules)
	pods := filepath.Join(filepath.Dir(world.cluster.AuditLog), "pod.log")
	before, err := os.ReadFile(pods)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(pods, before, 0o600) })
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "server.log")
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	s.server.Log = file
	s.start()
	s.agent = &rig.Agent{URL: s.server.URL, Token: world.token}
	if err := s.agent.Connect(s.ctx); err != nil {
		t.Fatal(err)
	}
	return s, log
}

// leaks reports whether a value stands in a text as it is, as JSON writes it, or
// in base64 at any of the three places where a byte can fall.
func leaks(text, value string) bool {
	escaped, _ := json.Marshal(value)
	if strings.Contains(text, value) || strings.Contains(text, strings.Trim(string(escaped), `"`)) {
		return true
	}
	for off := range 3 {
		if whole := value[off : off+(len(value)-off)/3*3]; len(whole) > 8 && (strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(whole))) ||
			strings.Contains(text, base64.URLEncoding.EncodeToString([]byte(whole)))) {
			return true
		}
	}
	return false
}

// What only looks like a secret stays readable.
func TestPlantedLookalikes(t *testing.T) {
	s, _ := plantedStage(t)
	all := audittest.Lookalikes()
	if len(all) < 60 {
		t.Errorf("only %d look-alikes", len(all))
	}
	for chunk := range slices.Chunk(all, inChunks) {
		calls := slices.DeleteFunc(plant(s, chunk), func(call string) bool {
			tool, _, _ := strings.Cut(call, " ")
			return tool == "patch_resource" || tool == "set_annotations" || tool == "diff_manifest" || tool == "scale_deployment"
		})
		seen := readPlanted(s, calls)
		for call, text := range seen {
			tool, args, _ := strings.Cut(call, " ")
			if tool == "list_events" { // one line each, the longest cut
				for _, want := range chunk {
					line := strings.Join(strings.Fields(want), " ")
					if !strings.Contains(text, line[:min(len(line), 200)]) {
						t.Errorf("%s does not show %q", tool, want)
					}
				}
			}
			switch {
			case tool == "get_resource" && strings.Contains(args, `"configmap"`) && !strings.Contains(args, "fields"):
				var object struct{ Data map[string]string }
				lines := strings.SplitAfter(text, "\n")
				if err := yaml.Unmarshal([]byte(strings.Join(lines[1:len(lines)-1], "")), &object); err != nil {
					t.Errorf("%s: %v", call, err)
				}
				for i, want := range chunk {
					if got := object.Data[fmt.Sprintf("settings-%d.txt", i)]; got != want {
						t.Errorf("in a ConfigMap %q is shown as %q", want, got)
					}
				}
			case tool == "get_pod_logs" && strings.Contains(args, "tail_lines"):
				for _, want := range chunk {
					if !strings.Contains(text, want) {
						t.Errorf("%s does not show %q", tool, want)
					}
				}
			case tool == "exec_in_pod":
				var given struct{ Command []string }
				if err := json.Unmarshal([]byte(args), &given); err != nil {
					t.Fatal(err)
				}
				if given.Command[0] == "echo" && !strings.Contains(text, given.Command[1]) {
					t.Errorf("a command that writes %q shows %s", given.Command[1], text)
				}
			}
		}
	}
}
