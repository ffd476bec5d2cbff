package replay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
	"countersign/audit"
)

// book is a log that tests write.
type book struct {
	records  [][]byte
	payloads map[uint64][]byte
}

// add writes a record of session s, with a payload where that is not nil.
func (b *book) add(r audit.Record, payload any) {
	r.Seq, r.Time = uint64(len(b.records)+1), time.Unix(int64(len(b.records)), 0)
	if r.Op != "" && r.Session == "" {
		r.Session = "s"
	}
	if payload != nil {
		data, err := json.Marshal(payload)
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(data)
		r.Payload = &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(data)}
		if b.payloads == nil {
			b.payloads = map[uint64][]byte{}
		}
		b.payloads[r.Seq] = data
	}
	line, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	b.records = append(b.records, line)
}

func (b *book) log() Log {
	return Log{
		Records: func(f func([]byte) error) error {
			for _, r := range b.records {
				if err := f(r); err != nil {
					return err
				}
			}
			return nil
		},
		Payload: func(seq uint64) ([]byte, error) { return b.payloads[seq], nil },
	}
}

// opened is a start of the server, which then finds its cluster "c"; "" is one that
// it may not ask.
func (b *book) opened(uid string) {
	b.add(audit.Record{Type: audit.LogOpened}, nil)
	b.add(audit.Record{Type: audit.ClusterSeen, Cluster: &audit.Cluster{Name: "c", Server: "c.example:443", UID: uid}}, nil)
}

var maps1 = action.Resource{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}

func configMap(name, value string) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": "n"}, "data": map[string]any{"k": value}}
}

func patch(name, value string) action.Action {
	return action.Action{
		Cluster: "c", Verb: action.Patch, Resource: maps1, Namespace: "n", Name: name,
		Body: map[string]any{"data": map[string]any{"k": value}}, Options: action.Options{PatchType: action.MergePatch},
	}
}

// sent is an operation of these requests, each answered with a code; 0 is not at all.
func (b *book) sent(op string, codes []int, live map[string]any, actions ...action.Action) {
	b.add(audit.Record{Type: audit.ToolIntent, Op: op, Tool: &audit.Tool{Name: "tool"}}, action.Plan{Actions: actions})
	b.started(op, codes, live, actions...)
}

func (b *book) started(op string, codes []int, live map[string]any, actions ...action.Action) {
	recorded := make([]audit.Action, len(actions))
	var answers []any
	outcome := audit.ExecOutcome
	for i, a := range actions {
		recorded[i] = audit.Action{Cluster: a.Cluster, Verb: a.Verb, Resource: a.Resource.Path(), Subresource: a.Subresource, Patch: a.Options.PatchType.Short(), Namespace: a.Namespace, Name: a.Name}
	}
	var before any
	if live != nil {
		before = audit.Live{Live: []map[string]any{live}}
	}
	b.add(audit.Record{Type: audit.ExecStarted, Op: op, Actions: recorded}, before)
	recorded = slices.Clone(recorded)
	for i, code := range codes {
		recorded[i].Code = code
		if code == 0 {
			outcome = audit.ExecUnknown
		}
		if code < 300 && code != 0 {
			recorded[i].UID = "uid-of-" + actions[i].Name
			value, _ := actions[i].Body.(map[string]any)["data"].(map[string]any)["k"].(string)
			answers = append(answers, configMap(actions[i].Name, value))
		}
	}
	b.add(audit.Record{Type: outcome, Op: op, Actions: recorded}, answers)
}

// memory is a sandbox that knows ConfigMaps and Namespaces.
type memory struct {
	uid     string
	objects map[string]map[string]any
	writes  []string
}

func newMemory() *memory { return &memory{uid: "sandbox", objects: map[string]map[string]any{}} }

func (m *memory) UID(context.Context) (string, error) { return m.uid, nil }

func (m *memory) Send(_ context.Context, _ string, a action.Action) (int, []byte, error) {
	at := a.Resource.Resource + "/" + a.Name
	object := m.objects[at]
	if a.Verb != action.Get {
		m.writes = append(m.writes, a.Verb+" "+at)
	}
	code := 200
	switch {
	case a.Verb == action.Create && object == nil:
		body := a.Body.(map[string]any)
		m.objects[at], code = body, 201
	case object == nil:
		return 0, nil, &Refusal{404, at + " not found"}
	case a.Verb == action.Create:
		return 0, nil, &Refusal{409, at + " exists"}
	case a.Verb == action.Delete:
		delete(m.objects, at)
	case a.Verb == action.Patch:
		data := a.Body.(map[string]any)["data"].(map[string]any)
		for key, value := range data {
			object["data"].(map[string]any)[key] = value
		}
	}
	answer, err := json.Marshal(object)
	if a.Verb == action.Create {
		answer, err = json.Marshal(m.objects[at])
	}
	return code, answer, err
}

// What was done is repeated, and nothing else.
func TestWhatIsReplayed(t *testing.T) {
	var b book
	b.opened("source")
	b.sent("done", []int{200}, configMap("a", "old"), patch("a", "new"))
	b.add(audit.Record{Type: audit.ToolIntent, Op: "done", Outcome: audit.Success, Tool: &audit.Tool{Name: "wait_for_operation"}}, nil)
	b.sent("refused", []int{409}, configMap("a", "old"), patch("a", "refused"))
	b.sent("partial", []int{200, 403}, configMap("a", "old"), patch("a", "newer"), patch("a", "never"))
	b.sent("lost", []int{0}, configMap("a", "old"), patch("a", "lost"))
	b.sent("found", []int{0}, configMap("f", "old"), patch("f", "found"))
	b.add(audit.Record{Type: audit.ExecReconciled, Op: "found", Evidence: &audit.Evidence{Result: "applied"}}, nil)
	b.sent("not", []int{0}, configMap("a", "old"), patch("a", "not"))
	b.add(audit.Record{Type: audit.ExecReconciled, Op: "not", Evidence: &audit.Evidence{Result: "not_applied"}}, nil)
	command, eviction, elsewhere := patch("p", ""), patch("p", ""), patch("a", "elsewhere")
	command.Verb, command.Subresource = action.Create, action.Exec
	eviction.Verb, eviction.Subresource = action.Create, action.Eviction
	b.sent("command", []int{200, 201}, nil, command, eviction)
	b.add(audit.Record{Type: audit.ToolIntent, Op: "stale", Tool: &audit.Tool{Name: "tool"}}, action.Plan{Actions: []action.Action{patch("s", "again")}})
	b.add(audit.Record{Type: audit.ApprovalDecided, Op: "stale", Approval: &audit.Approval{State: "STALE"}}, nil)
	b.add(audit.Record{Type: audit.ApprovalRequested, Op: "again", Approval: &audit.Approval{Supersedes: "stale"}}, nil)
	b.started("again", []int{200}, configMap("s", "old"), patch("s", "again"))
	b.add(audit.Record{Type: audit.ToolIntent, Op: "other", Session: "other"}, action.Plan{Actions: []action.Action{elsewhere}})
	b.add(audit.Record{Type: audit.PolicyDecided, Op: "denied", Outcome: audit.Denied}, nil)

	m := newMemory()
	report, err := Run(t.Context(), b.log(), m, "s", "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"create namespaces/n", "create configmaps/a", "patch configmaps/a", "patch configmaps/a", "create configmaps/f", "patch configmaps/f",
		"create configmaps/s", "patch configmaps/s",
	}
	if !slices.Equal(m.writes, want) {
		t.Errorf("got %q\nwant %q", m.writes, want)
	}
	if report.Diverged != 0 || len(report.Prepared) != 4 || len(report.Final) != 3 {
		t.Errorf("got %+v", report)
	}
	why := map[string]string{}
	for _, step := range report.Steps {
		if step.Result == NotReplayed {
			why[step.Op] += step.Why
		}
	}
	for op, text := range map[string]string{
		"refused": "refused it (code 409)", "partial": "refused it (code 403)", "lost": "not known", "not": "did not take effect",
		"command": "a command", "stale": "it was stale", "denied": "policy denied it",
	} {
		if !strings.Contains(why[op], text) {
			t.Errorf("%s: %q; want %q", op, why[op], text)
		}
	}
	if !strings.Contains(why["command"], "an eviction") || why["done"]+why["found"]+why["again"] != "" {
		t.Errorf("got %q", why)
	}
}

// What is otherwise is told, by object and field.
func TestDivergence(t *testing.T) {
	b := book{}
	b.opened("source")
	b.sent("one", []int{200}, configMap("a", "old"), patch("a", "new"))
	b.sent("two", []int{200}, nil, patch("b", "new"))
	gone := action.Action{Cluster: "c", Verb: action.Delete, Resource: maps1, Namespace: "n", Name: "d", Body: map[string]any{"data": map[string]any{}}}
	b.sent("three", []int{200}, configMap("d", "old"), gone)
	m := newMemory()
	m.objects["configmaps/a"] = configMap("a", "old")
	m.objects["configmaps/a"]["data"].(map[string]any)["evil"] = "yes"
	report, err := Run(t.Context(), b.log(), m, "s", "")
	if err != nil {
		t.Fatal(err)
	}
	evil := []Difference{{Path: "/data/evil", Sandbox: "yes"}}
	if report.Diverged != 4 || !reflect.DeepEqual(report.Steps[0].Differences, evil) || !reflect.DeepEqual(report.Final[0].Differences, evil) {
		t.Errorf("got %+v", report)
	}
	if step := report.Steps[1]; step.Result != Diverged || step.Sandbox != 404 || !strings.Contains(step.Why, "with kubectl") {
		t.Errorf("without the object: %+v", step)
	}
	if report.Final[1].Result != Diverged || report.Steps[2].Result != Same || report.Final[2].Result != Same {
		t.Errorf("got %+v", report.Final)
	}

	// A payload that retention took is not passed over in silence.
	for seq := range b.payloads {
		delete(b.payloads, seq)
	}
	if report, err = Run(t.Context(), b.log(), newMemory(), "s", ""); err != nil || report.Diverged != 3 {
		t.Errorf("without payloads: %+v, %v", report, err)
	}
}

// Line 38: what may be the source is refused, and nothing is written to it.
func TestRefused(t *testing.T) {
	m := newMemory()
	refused := func(name string, b *book, cluster, want string) {
		t.Helper()
		_, err := Run(t.Context(), b.log(), m, "s", cluster)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
		if len(m.writes) > 0 {
			t.Fatalf("%s: %q was written", name, m.writes)
		}
	}
	session := func(uid string) *book {
		b := &book{}
		b.opened(uid)
		b.sent("one", []int{200}, configMap("a", "old"), patch("a", "new"))
		return b
	}
	refused("the source", session("sandbox"), "", `refused: the sandbox is the cluster "c"`)
	refused("one that could not be asked", session(""), "", "the log does not say which cluster")
	b := &book{}
	b.sent("one", []int{200}, nil, patch("a", "new"))
	refused("one that was never seen", b, "", "the log does not say which cluster")
	b = session("source")
	b.opened("") // another start, in which it is not known
	b.sent("two", []int{200}, nil, patch("a", "newer"))
	refused("one that was another perhaps", b, "", "the log does not say which cluster")
	b = session("source")
	b.opened("sandbox")
	refused("what the name stood for later", b, "", "refused: the sandbox is the cluster")
	b = session("source")
	b.add(audit.Record{Type: audit.ClusterSeen, Cluster: &audit.Cluster{Name: "other", UID: "sandbox"}}, nil)
	refused("another governed cluster", b, "", `refused: the sandbox is the cluster "other"`)

	m.objects["configmaps/a"] = configMap("a", "old")
	m.objects["configmaps/a"]["metadata"].(map[string]any)["uid"] = "uid-of-a"
	refused("where the object is the very same", session("source"), "", "is the very object")
	delete(m.objects, "configmaps/a")

	b = session("source")
	elsewhere := patch("a", "new")
	elsewhere.Cluster = "e"
	b.sent("two", []int{200}, nil, elsewhere)
	refused("several clusters", b, "", "--cluster c or e")
	refused("no such cluster", b, "x", `changed nothing in a cluster "x"`)
	refused("the other is not known", b, "c", "the log does not say which cluster \"e\"")
	if _, err := Run(t.Context(), b.log(), m, "none", ""); err == nil || !strings.Contains(err.Error(), "no record of a session") {
		t.Errorf("no session: %v", err)
	}
	b = session("source")
	for seq := range b.payloads {
		b.payloads[seq] = append([]byte(" "), b.payloads[seq]...)
	}
	refused("an edited payload", b, "", "is not the one that the record commits to")
}

// An event of many requests is several records, of which the first has the payload.
func TestManyActions(t *testing.T) {
	var b, parts book
	b.opened("source")
	var actions []action.Action
	var codes []int
	for i := range 3*audit.MaxActions + 1 {
		actions, codes = append(actions, patch(fmt.Sprintf("m%d", i), "new")), append(codes, 200)
	}
	b.sent("many", codes, nil, actions...)
	m := newMemory()
	for _, a := range actions {
		m.objects["configmaps/"+a.Name] = configMap(a.Name, "old")
	}
	for _, line := range b.records {
		var r audit.Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		payload := b.payloads[r.Seq]
		for _, part := range audit.Split(r, func() string { return "" }) {
			part.Seq = uint64(len(parts.records) + 1)
			if part.Payload != nil {
				if parts.payloads == nil {
					parts.payloads = map[uint64][]byte{}
				}
				parts.payloads[part.Seq] = payload
			}
			data, err := json.Marshal(part)
			if err != nil {
				t.Fatal(err)
			}
			parts.records = append(parts.records, data)
		}
	}
	report, err := Run(t.Context(), parts.log(), m, "s", "")
	if err != nil || report.Diverged != 0 || len(report.Steps) != len(actions) || len(report.Final) != len(actions) {
		t.Errorf("%v: %+v", err, report)
	}
}

func TestStandIns(t *testing.T) {
	encoded := base64.StdEncoding.EncodeToString([]byte(standIn))
	secrets := action.Resource{Version: "v1", Resource: "secrets"}
	for _, row := range []struct {
		name       string
		action     action.Action
		body, want string // JSON
		at         []string
	}{
		{
			"a Secret", action.Action{Verb: action.Create, Resource: secrets},
			`{"kind":"Secret","metadata":{"name":"a"},"data":{"a/b":"***"},"stringData":{"c":"***"}}`,
			`{"kind":"Secret","metadata":{"name":"a"},"data":{"a/b":"` + encoded + `"},"stringData":{"c":"` + standIn + `"}}`,
			[]string{"/data/a~1b", "/stringData/c"},
		},
		{
			"a merge patch of one", action.Action{Verb: action.Patch, Resource: secrets, Options: action.Options{PatchType: action.MergePatch}},
			`{"data":{"a":"***","b":null}}`, `{"data":{"a":"` + encoded + `","b":null}}`, []string{"/data/a"},
		},
		{
			"a JSON patch of one", action.Action{Verb: action.Patch, Resource: secrets, Options: action.Options{PatchType: action.JSONPatch}},
			`[{"op":"add","path":"/data/a","value":"***"},{"op":"replace","path":"/data","value":{"b":"***"}},{"op":"remove","path":"/data/c"}]`,
			`[{"op":"add","path":"/data/a","value":"` + encoded + `"},{"op":"replace","path":"/data","value":{"b":"` + encoded + `"}},{"op":"remove","path":"/data/c"}]`,
			[]string{"/0/value", "/1/value/b"},
		},
		{
			"what the API server wants as JSON", action.Action{Verb: action.Create, Resource: secrets},
			`{"data":{".dockerconfigjson":"***"}}`, `{"data":{".dockerconfigjson":"e30="}}`, []string{"/data/.dockerconfigjson"},
		},
		{
			"a ConfigMap", action.Action{Verb: action.Create, Resource: maps1},
			`{"data":{"url":"https://u:***@h"},"binaryData":{"b":"aGk***"}}`,
			`{"data":{"url":"https://u:` + standIn + `@h"},"binaryData":{"b":"` + encoded + `"}}`, []string{"/binaryData/b", "/data/url"},
		},
		{
			"an environment", action.Action{Verb: action.Create},
			`{"spec":{"containers":[{"env":[{"name":"A_PASSWORD","value":"***"}],"ports":[80]}]}}`,
			`{"spec":{"containers":[{"env":[{"name":"A_PASSWORD","value":"` + standIn + `"}],"ports":[80]}]}}`, []string{"/spec/containers/0/env/0/value"},
		},
	} {
		var body, want any
		if json.Unmarshal([]byte(row.body), &body) != nil || json.Unmarshal([]byte(row.want), &want) != nil {
			t.Fatal(row.name)
		}
		row.action.Body = body
		got, at := fill(row.action)
		slices.Sort(at)
		if !reflect.DeepEqual(got, want) || !slices.Equal(at, row.at) {
			t.Errorf("%s: got %v at %q", row.name, got, at)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, row := range []struct{ name, recorded, got, want string }{
		{"what every cluster gives anew", `{"metadata":{"name":"a","uid":"1","resourceVersion":"5","creationTimestamp":"x","generation":1,"managedFields":[],"annotations":{"deployment.kubernetes.io/revision":"2"}},"status":{"a":1}}`,
			`{"metadata":{"name":"a","uid":"2","resourceVersion":"9"}}`, ""},
		{"addresses of a Service", `{"kind":"Service","spec":{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],"ports":[{"port":80,"nodePort":30000}]}}`,
			`{"kind":"Service","spec":{"clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"ports":[{"port":80,"nodePort":30009}]}}`, ""},
		{"owners", `{"metadata":{"ownerReferences":[{"name":"o","uid":"1"}]}}`, `{"metadata":{"ownerReferences":[{"name":"o","uid":"2"}]}}`, ""},
		{"another owner", `{"metadata":{"ownerReferences":[{"name":"o","uid":"1"}]}}`, `{"metadata":{"ownerReferences":[{"name":"p","uid":"1"}]}}`, "/metadata/ownerReferences/0/name"},
		{"masked", `{"spec":{"url":"https://u:***@h/x"}}`, `{"spec":{"url":"https://u:` + standIn + `@h/x"}}`, ""},
		{"masked, and other around", `{"spec":{"url":"https://u:***@h/x"}}`, `{"spec":{"url":"https://u:` + standIn + `@h/y"}}`, "/spec/url"},
		{"masked, and not there", `{"kind":"Secret","data":{"a":"***"}}`, `{"kind":"Secret","data":{}}`, "/data/a"},
		{"masked, and one more", `{"kind":"Secret","data":{"a":"***"}}`, `{"kind":"Secret","data":{"a":"eA==","b":"eA=="}}`, "/data/b"},
		{"a secret in the place of a text", `{"spec":{"password":"none"}}`, `{"spec":{"password":"hunter2hunter2"}}`, "/spec/password"},
		{"numbers", `{"spec":{"replicas":2}}`, `{"spec":{"replicas":3}}`, "/spec/replicas"},
	} {
		var recorded, got map[string]any
		if json.Unmarshal([]byte(row.recorded), &recorded) != nil || json.Unmarshal([]byte(row.got), &got) != nil {
			t.Fatal(row.name)
		}
		differences := compare(recorded, got)
		if row.want == "" && differences == nil {
			continue
		}
		if len(differences) != 1 || differences[0].Path != row.want {
			t.Errorf("%s: got %+v, want %q", row.name, differences, row.want)
		}
		if text := fmt.Sprint(differences); strings.Contains(text, "hunter2") {
			t.Errorf("%s: a secret value is shown: %s", row.name, text)
		}
	}
}

// What is made anew has nothing of its first cluster that the API server refuses.
func TestOriginal(t *testing.T) {
	var job, pod map[string]any
	if json.Unmarshal([]byte(`{"kind":"Job","metadata":{"name":"j","ownerReferences":[{"uid":"1"}],"labels":{"controller-uid":"1"}},"spec":{"selector":{"matchLabels":{}},"template":{}},"status":{}}`), &job) != nil ||
		json.Unmarshal([]byte(`{"kind":"Pod","metadata":{"name":"p"},"spec":{"nodeName":"n","volumes":[{"name":"kube-api-access-abcde"}],"containers":[{"volumeMounts":[{"name":"kube-api-access-abcde"},{"name":"data"}]}]}}`), &pod) != nil {
		t.Fatal("JSON")
	}
	for _, row := range []struct {
		object map[string]any
		want   string
	}{
		{job, `{"kind":"Job","metadata":{"labels":{},"name":"j"},"spec":{"template":{}}}`},
		{pod, `{"kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"volumeMounts":[{"name":"data"}]}]}}`},
	} {
		if got, err := action.Canonical(original(row.object)); err != nil || string(got) != row.want {
			t.Errorf("got %s, %v", got, err)
		}
	}
}

// Agents can give their sessions one name: a replay says when it is of several callers.
func TestSharedSession(t *testing.T) {
	for _, row := range []struct {
		second action.Principal
		shared bool
	}{{action.Principal{Subject: "anna"}, false}, {action.Principal{Subject: "ben"}, true}, {action.Principal{Subject: "anna", OnBehalfOf: "ben"}, true}} {
		var b book
		b.opened("source")
		b.add(audit.Record{Type: audit.PolicyDecided, Op: "one", Outcome: audit.Denied, Principal: &action.Principal{Subject: "anna"}}, nil)
		b.add(audit.Record{Type: audit.PolicyDecided, Op: "two", Outcome: audit.Denied, Principal: &row.second}, nil)
		report, err := Run(t.Context(), b.log(), newMemory(), "s", "")
		if err != nil || report.Shared != row.shared {
			t.Errorf("%+v: %+v, %v", row.second, report, err)
		}
	}
}

// agreeable is a sandbox that answers everything with the same object.
type agreeable struct{}

func (agreeable) UID(context.Context) (string, error) { return "sandbox", nil }

func (agreeable) Send(context.Context, string, action.Action) (int, []byte, error) {
	return 200, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"n","uid":"u"},"data":{"k":"v"}}`), nil
}

// Records that no server wrote are refused or replayed in part, and end nothing. Lines
// are records; the line of the same number in payloads is what the record commits to.
func FuzzRun(f *testing.F) {
	b := &book{}
	b.opened("source")
	b.sent("one", []int{200}, configMap("a", "old"), patch("a", "new"))
	b.sent("two", []int{201, 0}, nil, patch("a", "newer"), patch("b", "***"))
	b.add(audit.Record{Type: audit.ExecReconciled, Op: "two", Evidence: &audit.Evidence{Result: "applied"}}, nil)
	var payloads [][]byte
	for i := range b.records {
		payloads = append(payloads, b.payloads[uint64(i+1)])
	}
	f.Add(bytes.Join(b.records, []byte("\n")), bytes.Join(payloads, []byte("\n")))
	f.Fuzz(func(t *testing.T, records, payloads []byte) {
		b := &book{payloads: map[uint64][]byte{}}
		texts := bytes.Split(payloads, []byte("\n"))
		for i, line := range bytes.Split(records, []byte("\n")) {
			var r audit.Record
			if json.Unmarshal(line, &r) == nil && i < len(texts) && len(texts[i]) > 0 {
				sum := sha256.Sum256(texts[i])
				r.Payload = &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(texts[i])}
				b.payloads[r.Seq] = texts[i]
				line, _ = json.Marshal(r)
			}
			b.records = append(b.records, line)
		}
		Run(t.Context(), b.log(), agreeable{}, "s", "c")
	})
}
