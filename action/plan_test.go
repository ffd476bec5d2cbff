package action

import (
	"encoding/json"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// scalePlan has a body, options and a subresource; the tests change one thing at a time.
func scalePlan() Plan {
	return Plan{Tool: "scale_deployment", Actions: []Action{{
		Cluster: "prod", Verb: Patch,
		Resource:    Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true},
		Subresource: "scale", Namespace: "shop", Name: "web",
		Body:    map[string]any{"spec": map[string]any{"replicas": int64(3)}},
		Options: Options{PatchType: MergePatch, FieldManager: "countersign"},
	}}}
}

func secretPlan() Plan {
	return Plan{Tool: "apply_manifest", Actions: []Action{{
		Cluster: "prod", Verb: Patch,
		Resource:  Resource{Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true},
		Namespace: "shop", Name: "db",
		Body: map[string]any{
			"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "db", "namespace": "shop"},
			"stringData": map[string]any{"password": "<hunter2> & co"},
		},
		Options: Options{PatchType: ApplyPatch, FieldManager: "countersign", Force: true},
	}}}
}

// The hex is what sha256sum and openssl dgst -hmac say of the text, with the
// domain on a line before it. Stored operations and exported logs hold such
// digests: when this test fails, the digests of every earlier version are void.
func TestDigestGolden(t *testing.T) {
	const scaleText = `{"tool":"scale_deployment","actions":[{"cluster":"prod","verb":"patch",` +
		`"resource":{"group":"apps","version":"v1","resource":"deployments","kind":"Deployment","namespaced":true},` +
		`"subresource":"scale","namespace":"shop","name":"web","body":{"spec":{"replicas":3}},` +
		`"options":{"patchType":"application/merge-patch+json","fieldManager":"countersign"}}]}`
	const secretText = `{"tool":"apply_manifest","actions":[{"cluster":"prod","verb":"patch",` +
		`"resource":{"group":"","version":"v1","resource":"secrets","kind":"Secret","namespaced":true},` +
		`"namespace":"shop","name":"db","body":{"apiVersion":"v1","kind":"Secret","metadata":{"name":"db","namespace":"shop"},` +
		`"stringData":{"password":"<hunter2> & co"}},` +
		`"options":{"patchType":"application/apply-patch+yaml","fieldManager":"countersign","force":true}}]}`

	for _, row := range []struct {
		name string
		plan Plan
		key  []byte
		text string
		want string
	}{
		{"without key", scalePlan(), nil, scaleText, "sha256:b0119818451cdd17743a82959996af50289bbc7e54007ad8fa66865c3f64bbf2"},
		{"with key", secretPlan(), []byte("golden key"), secretText, "hmac-sha256:568ca21bbc67d13c57a9518e7bd93078a752d9a29c6ea677566bd77f104caf83"},
		{"empty plan", Plan{}, nil, `{"tool":"","actions":null}`, "sha256:4039dd88f5b4f97822c45901391af5ffa9be484170e365b3ff049212d7f18250"},
	} {
		t.Run(row.name, func(t *testing.T) {
			text, err := Canonical(row.plan)
			if err != nil || string(text) != row.text {
				t.Errorf("Canonical = %s, %v\nwant        %s", text, err, row.text)
			}
			got, err := row.plan.Digest(row.key)
			if err != nil || got != row.want {
				t.Errorf("Digest = %s, %v; want %s", got, err, row.want)
			}
		})
	}
}

// An approver consents to requests, not to a way of writing them.
func TestDigestDoesNotDependOnSpelling(t *testing.T) {
	const want = `{"metadata":{"labels":{"a":"1","b":"2"},"name":"web"},"spec":{"on":true,"replicas":3,"text":"a\nb"}}`
	for name, manifest := range map[string]string{
		"JSON":              `{"spec":{"replicas":3,"on":true,"text":"a\nb"},"metadata":{"name":"web","labels":{"b":"2","a":"1"}}}`,
		"JSON, white space": "{\n\t\"metadata\" : { \"labels\": {\"a\":\"1\" , \"b\":\"2\"},\r\n \"name\":\"\\u0077eb\"}, \"spec\":{\"text\":\"a\\nb\",\"on\":true,\"replicas\":3}}",
		"YAML":              "spec: {text: \"a\\nb\", replicas: 3, on: true}\nmetadata:\n  name: web\n  labels: {b: '2', a: \"1\"}\n",
		"YAML, other words": "# a comment\nmetadata:\n    labels:\n        a: \"1\"\n        b: \"2\"\n    name: 'web'\nspec:\n    on: yes\n    replicas: 0x3\n    text: |-\n        a\n        b\n",
	} {
		t.Run(name, func(t *testing.T) {
			// "on" is a key here, which YAML 1.1 would read as true.
			data, err := yaml.YAMLToJSON([]byte(strings.ReplaceAll(manifest, "on:", `"on":`)))
			if err != nil {
				t.Fatal(err)
			}
			var body any
			if err := json.Unmarshal(data, &body); err != nil {
				t.Fatal(err)
			}
			if got, err := Canonical(body); err != nil || string(got) != want {
				t.Errorf("Canonical = %s, %v; want %s", got, err, want)
			}
			digest := func(v any) string {
				p := scalePlan()
				p.Actions[0].Body = v
				return mustDigest(t, p)
			}
			if got := digest(body); got != digest(json.RawMessage(want)) {
				t.Errorf("digest %s differs from that of the same object written otherwise", got)
			}
		})
	}
}

func TestDigestDependsOnEverythingSent(t *testing.T) {
	base := scalePlan()
	second := base.Actions[0]
	second.Name = "api"
	base.Actions = append(base.Actions, second)
	seconds := func(n int64) *int64 { return &n }

	changes := map[string]func(*Plan){
		"tool":                func(p *Plan) { p.Tool = "apply_manifest" },
		"order":               func(p *Plan) { p.Actions[0], p.Actions[1] = p.Actions[1], p.Actions[0] },
		"one action less":     func(p *Plan) { p.Actions = p.Actions[:1] },
		"one action twice":    func(p *Plan) { p.Actions = append(p.Actions, p.Actions[1]) },
		"cluster":             func(p *Plan) { p.Actions[0].Cluster = "staging" },
		"verb":                func(p *Plan) { p.Actions[0].Verb = Update },
		"group":               func(p *Plan) { p.Actions[0].Resource.Group = "extensions" },
		"version":             func(p *Plan) { p.Actions[0].Resource.Version = "v1beta1" },
		"resource":            func(p *Plan) { p.Actions[0].Resource.Resource = "statefulsets" },
		"subresource":         func(p *Plan) { p.Actions[0].Subresource = "status" },
		"no subresource":      func(p *Plan) { p.Actions[0].Subresource = "" },
		"namespace":           func(p *Plan) { p.Actions[0].Namespace = "prod" },
		"name":                func(p *Plan) { p.Actions[0].Name = "web2" },
		"part of name moved":  func(p *Plan) { p.Actions[0].Namespace, p.Actions[0].Name = "shopw", "eb" },
		"body value":          func(p *Plan) { p.Actions[0].Body = replicas(int64(4)) },
		"body type, text":     func(p *Plan) { p.Actions[0].Body = replicas("3") },
		"body type, null":     func(p *Plan) { p.Actions[0].Body = replicas(nil) },
		"body type, fraction": func(p *Plan) { p.Actions[0].Body = replicas(3.5) },
		"body, another key":   func(p *Plan) { p.Actions[0].Body = map[string]any{"Spec": map[string]any{"replicas": int64(3)}} },
		"body, one key more": func(p *Plan) {
			p.Actions[0].Body = map[string]any{"spec": map[string]any{"replicas": int64(3), "x": nil}}
		},
		"body, in a list":      func(p *Plan) { p.Actions[0].Body = []any{replicas(int64(3))} },
		"no body":              func(p *Plan) { p.Actions[0].Body = nil },
		"patch type":           func(p *Plan) { p.Actions[0].Options.PatchType = ApplyPatch },
		"field manager":        func(p *Plan) { p.Actions[0].Options.FieldManager = "kubectl" },
		"force":                func(p *Plan) { p.Actions[0].Options.Force = true },
		"label selector":       func(p *Plan) { p.Actions[0].Options.LabelSelector = "a=b" },
		"field selector":       func(p *Plan) { p.Actions[0].Options.FieldSelector = "a=b" },
		"limit":                func(p *Plan) { p.Actions[0].Options.Limit = 1 },
		"continue":             func(p *Plan) { p.Actions[0].Options.Continue = "x" },
		"table":                func(p *Plan) { p.Actions[0].Options.Table = true },
		"propagation":          func(p *Plan) { p.Actions[0].Options.PropagationPolicy = "Orphan" },
		"grace period 0":       func(p *Plan) { p.Actions[0].Options.GracePeriodSeconds = seconds(0) },
		"grace period 1":       func(p *Plan) { p.Actions[0].Options.GracePeriodSeconds = seconds(1) },
		"container":            func(p *Plan) { p.Actions[0].Options.Container = "app" },
		"previous":             func(p *Plan) { p.Actions[0].Options.Previous = true },
		"tail lines":           func(p *Plan) { p.Actions[0].Options.TailLines = 1 },
		"since seconds":        func(p *Plan) { p.Actions[0].Options.SinceSeconds = 1 },
		"tail bytes":           func(p *Plan) { p.Actions[0].Options.TailBytes = 1 },
		"the second's options": func(p *Plan) { p.Actions[1].Options.Force = true },
	}
	seen := map[string]string{mustDigest(t, base): "the plan itself"}
	for name, change := range changes {
		changed := Plan{Tool: base.Tool, Actions: append([]Action(nil), base.Actions...)}
		change(&changed)
		digest := mustDigest(t, changed)
		if same, dup := seen[digest]; dup {
			t.Errorf("%s: same digest as %s", name, same)
		}
		seen[digest] = name
	}
}

// A digest is of no use to somebody who guesses, unless they hold the key; and
// one kind of digest can never stand for another.
func TestDigestKeyAndDomain(t *testing.T) {
	p := secretPlan()
	plain, err1 := p.Digest(nil)
	one, err2 := p.Digest([]byte("one"))
	two, err3 := p.Digest([]byte("two"))
	previews, err4 := PreviewDigest(nil, nil)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
		t.Fatal(err1, err2, err3, err4)
	}
	if one == two {
		t.Error("the key does not count")
	}
	if !strings.HasPrefix(plain, "sha256:") || !strings.HasPrefix(one, "hmac-sha256:") {
		t.Errorf("digests %s and %s do not say how they were made", plain, one)
	}
	if bare, _ := digest(nil, "countersign.plan.v1", []string{}); bare == previews {
		t.Error("a plan's digest can be that of a preview")
	}
}

func TestDigestOfWhatJSONCannotHold(t *testing.T) {
	p := scalePlan()
	p.Actions[0].Body = map[string]any{"f": func() {}}
	if digest, err := p.Digest(nil); err == nil {
		t.Errorf("Digest = %s; want an error", digest)
	}
}

func TestPlanSecret(t *testing.T) {
	if scalePlan().Secret() || !secretPlan().Secret() {
		t.Error("Secret() is for plans about Secrets")
	}
	mixed := scalePlan()
	mixed.Actions = append(mixed.Actions, secretPlan().Actions...)
	if !mixed.Secret() {
		t.Error("one Secret among others is enough")
	}
	foreign := secretPlan()
	foreign.Actions[0].Resource.Group = "example.com"
	if foreign.Secret() {
		t.Error("secrets.example.com are not Secrets")
	}
}

func TestPlanReadOnly(t *testing.T) {
	read := Action{Verb: Get}
	for _, row := range []struct {
		actions []Action
		want    bool
	}{
		{nil, true},
		{[]Action{read, {Verb: List}}, true},
		{[]Action{read, {Verb: Delete}}, false},
		{[]Action{{Verb: "watch"}}, false}, // nobody plans it, so it is not taken for harmless
		{[]Action{{Verb: ""}}, false},
	} {
		if got := (Plan{Actions: row.actions}).ReadOnly(); got != row.want {
			t.Errorf("ReadOnly of %v = %v", row.actions, got)
		}
	}
}

func replicas(n any) map[string]any { return map[string]any{"spec": map[string]any{"replicas": n}} }

func mustDigest(t *testing.T, p Plan) string {
	t.Helper()
	digest, err := p.Digest(nil)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}
