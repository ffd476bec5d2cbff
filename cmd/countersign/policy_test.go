package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/trial"
)

// in makes a folder of files and goes there.
func in(t *testing.T, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("COUNTERSIGN_CONFIG", "")
}

func succeed(t *testing.T, words ...string) (out string) {
	t.Helper()
	out, errOut, code := execute(words...)
	if code != 0 {
		t.Fatalf("%v: exit %d: %s", words, code, errOut)
	}
	return out
}

func execute(words ...string) (out, errOut string, code int) {
	var stdout, stderr bytes.Buffer
	code = run(context.Background(), words, strings.NewReader(""), &stdout, &stderr)
	return stdout.String(), stderr.String(), code
}

const rulesOfTwo = `apiVersion: countersign/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  rules:
  - {name: scale, effect: allow, match: {tools: [scale_deployment], namespaceSelector: {matchLabels: {team: shop, env: test}}}, when: object.spec.replicas < 10}
  - {name: ask, effect: require_approval, match: {tools: [scale_deployment], clusters: [prod]}, approval: {approvers: [anybody], reason: required}}
`

const casesOfTwo = `apiVersion: countersign/v1alpha1
kind: PolicyTest
cases:
- {name: one, principal: {username: u}, call: {tool: list_namespaces}, expect: {decision: deny, rules: []}}
- {name: two, principal: {username: u}, cluster: prod, call: {tool: scale_deployment, args: {namespace: n, name: w, replicas: 3}}, result: [{spec: {replicas: 3}}], expect: {decision: require_approval, rules: [ask]}}
`

// What scripts read is JSON, and says the same as the text.
func TestPolicyJSON(t *testing.T) {
	in(t, map[string]string{"p/p.yaml": rulesOfTwo, "p/a_test.yaml": casesOfTwo, "log.jsonl": `{"v":1,"type":"tool.intent","op":"1","principal":{"username":"u"},"tool":{"name":"list_namespaces"},"actions":[{"cluster":"prod","verb":"list","resource":"v1/namespaces"}]}
{"v":1,"type":"policy.decided","op":"1","policy":{"decision":"allow","rules":["r"]}}
`})
	var tests []testResult
	if err := json.Unmarshal([]byte(succeed(t, "policy", "test", "p", "-o", "json")), &tests); err != nil {
		t.Fatal(err)
	}
	if len(tests) != 2 || !tests[0].Pass || tests[1].Case != "two" || tests[1].Got != "require_approval" || tests[1].Line != 5 || tests[1].File != filepath.Join("p", "a_test.yaml") {
		t.Errorf("got %+v", tests)
	}
	var e trial.Explanation
	if err := json.Unmarshal([]byte(succeed(t, "policy", "explain", "p", "--file", "p/a_test.yaml", "--case", "two", "-o", "json")), &e); err != nil {
		t.Fatal(err)
	}
	if e.Decision != "require_approval" || len(e.Approvals) != 1 || !e.Approvals[0].ReasonRequired || len(e.Requests) != 1 || len(e.Limits) != 1 {
		t.Errorf("got %+v", e)
	}
	var s simulation
	if err := json.Unmarshal([]byte(succeed(t, "policy", "simulate", "--log", "log.jsonl", "--policy", "p", "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Calls) != 1 || s.Totals.Different != 1 || s.Calls[0].After.Decision != "deny" {
		t.Errorf("got %+v", s)
	}
}

// The flags of explain say what there is: labels, live objects, what the dry run
// would answer.
func TestPolicyExplainFlags(t *testing.T) {
	in(t, map[string]string{
		"p/p.yaml": rulesOfTwo,
		"web.yaml": "{apiVersion: apps/v1, kind: Deployment, metadata: {name: w, namespace: n}, spec: {replicas: 1}}",
		"big.yaml": "{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: w, namespace: n}, spec: {replicas: 70}}",
	})
	call := []string{"policy", "explain", "p", "--as", "u", "--tool", "scale_deployment", "--args", `{"namespace":"n","name":"w","replicas":3}`}
	for _, row := range []struct {
		more []string
		want string
	}{
		{[]string{"--namespace-labels", "n=team=shop,env=test", "--live", "web.yaml"}, "Decision  allow"},
		{[]string{"--namespace-labels", "n=team=shop", "--live", "web.yaml"}, "does not select namespace"},
		{[]string{"--namespace-labels", "n=team=shop,env=test", "--live", "web.yaml", "--result", "big.yaml"}, "matches, and its condition is false"},
	} {
		if out := succeed(t, append(call, row.more...)...); !strings.Contains(out, row.want) {
			t.Errorf("%v: got %s", row.more, out)
		}
	}
	for _, row := range []struct {
		more []string
		want string
	}{
		{[]string{"--namespace-labels", "n=team=shop,env=test"}, "the call cannot be decided: previewing patch deployments.apps/scale n/w: it is not there"},
		{[]string{"--namespace-labels", "n=team"}, "write NAMESPACE=KEY=VALUE"},
		{[]string{"--live", "p"}, "is a directory"},
		{[]string{"--file", "x"}, "if any flags in the group"},
		{[]string{"-o", "yaml"}, "text or json"},
	} {
		if _, errOut, code := execute(append(call, row.more...)...); code != 1 || !strings.Contains(errOut, row.want) {
			t.Errorf("%v: exit %d, %s", row.more, code, errOut)
		}
	}
}

// Help has an example for each command.
func TestPolicyHelp(t *testing.T) {
	for _, name := range []string{"check", "test", "explain", "simulate"} {
		if out := succeed(t, "policy", name, "--help"); !strings.Contains(out, "countersign policy "+name) || !strings.Contains(out, "Examples:") {
			t.Errorf("%s: %s", name, out)
		}
	}
	if _, errOut, code := execute("policy", "chek"); code != 1 || !strings.Contains(errOut, "there is no command") {
		t.Errorf("exit %d, %s", code, errOut)
	}
}
