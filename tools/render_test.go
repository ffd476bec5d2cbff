package tools

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"countersign/action"
)

var (
	podsIn   = action.Action{Verb: action.List, Resource: action.Resource{Version: "v1", Resource: "pods", Kind: "Pod", Namespaced: true}, Namespace: "shop"}
	podsAll  = action.Action{Verb: action.List, Resource: podsIn.Resource}
	getCM    = action.Action{Verb: action.Get, Resource: action.Resource{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}, Namespace: "shop", Name: "a"}
	getDB    = action.Action{Verb: action.Get, Resource: action.Resource{Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true}, Namespace: "shop", Name: "db"}
	scaleWeb = action.Action{Verb: action.Patch, Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Namespaced: true}, Subresource: "scale", Namespace: "shop", Name: "web"}
)

// podTable is what an API server of Kubernetes 1.35 answers to a list of pods as
// a Table: the columns behind AGE are those that kubectl shows with -o wide.
func podTable(meta string, rows ...string) string {
	return `{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1234"` + meta + `},"columnDefinitions":[
		{"name":"Name","type":"string","format":"name","description":"Name must be unique within a namespace.","priority":0},
		{"name":"Ready","type":"string","format":"","description":"","priority":0},
		{"name":"Status","type":"string","format":"","description":"","priority":0},
		{"name":"Restarts","type":"string","format":"","description":"","priority":0},
		{"name":"Age","type":"string","format":"","description":"","priority":0},
		{"name":"IP","type":"string","format":"","description":"","priority":1},
		{"name":"Node","type":"string","format":"","description":"","priority":1}],
		"rows":[` + strings.Join(rows, ",") + `]}`
}

const (
	webRow = `{"cells":["web-1","1/1","Running","2 (5m ago)","3d",null,"node-1"],"object":null}`
	dbRow  = `{"cells":["db-0","0/1","ImagePullBackOff",0,"12h","10.0.0.7","node-2"],"object":null}`
)

func inNamespace(row, namespace string) string {
	return strings.Replace(row, `"object":null`, `"object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"x","namespace":"`+namespace+`"}}`, 1)
}

func TestRenderTable(t *testing.T) {
	goesOn := podsIn
	goesOn.Options.Continue = "handle"
	for _, row := range []struct {
		name   string
		action action.Action
		body   string
		want   string
	}{
		{"in one namespace", podsIn, podTable("", webRow, dbRow), "" +
			"NAME   READY  STATUS            RESTARTS    AGE\n" +
			"web-1  1/1    Running           2 (5m ago)  3d\n" +
			"db-0   0/1    ImagePullBackOff  0           12h\n"},
		{"over all namespaces", podsAll, podTable("", inNamespace(webRow, "shop"), inNamespace(dbRow, "prod"), webRow), "" +
			"NAMESPACE  NAME   READY  STATUS            RESTARTS    AGE\n" +
			"shop       web-1  1/1    Running           2 (5m ago)  3d\n" +
			"prod       db-0   0/1    ImagePullBackOff  0           12h\n" +
			"?          web-1  1/1    Running           2 (5m ago)  3d\n"},
		{"none", podsIn, podTable(""), "No pods found in namespace shop (list_namespaces shows which there are)."},
		{"none anywhere", podsAll, podTable(""), "No pods found."},
		{"the first of more, counted", podsIn, podTable(`,"continue":"abc","remainingItemCount":4999`, webRow), "" +
			"NAME   READY  STATUS   RESTARTS    AGE\nweb-1  1/1    Running  2 (5m ago)  3d\n" +
			"1 of 5000 shown. Narrow with label_selector or field_selector, or go on with continue: abc\n"},
		{"the second part of more, counted", goesOn, podTable(`,"continue":"abc","remainingItemCount":33`, webRow, dbRow), "" +
			"NAME   READY  STATUS            RESTARTS    AGE\nweb-1  1/1    Running           2 (5m ago)  3d\ndb-0   0/1    ImagePullBackOff  0           12h\n" +
			"2 more shown, 33 left. Narrow with label_selector or field_selector, or go on with continue: abc\n"},
		{"the first of more, with a selector", podsIn, podTable(`,"continue":"abc"`, webRow), "" +
			"NAME   READY  STATUS   RESTARTS    AGE\nweb-1  1/1    Running  2 (5m ago)  3d\n" +
			"1 shown, and there are more. Narrow with label_selector or field_selector, or go on with continue: abc\n"},
		{"cells of several lines, empty and with numbers", podsIn, podTable("", `{"cells":["a\nb\t c",null,true,9007199254740993,1.5]}`), "" +
			"NAME   READY  STATUS  RESTARTS          AGE\na b c         true    9007199254740993  1.5\n"},
		{"fewer cells than columns, and more", podsIn, podTable("", `{"cells":["a"]}`, `{"cells":["b","1","2","3","4","5","6","7","8"]}`), "" +
			"NAME  READY  STATUS  RESTARTS  AGE\na\nb     1      2       3         4\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := renderTable([]Response{{Action: row.action, Body: []byte(row.body)}})
			if err != nil || got != row.want {
				t.Errorf("%v\ngot\n%s\nwant\n%s", err, got, row.want)
			}
		})
	}

	for _, body := range []string{`{"kind":"PodList","apiVersion":"v1","items":[]}`, `{"kind":"Table","rows":7}`, `not JSON`, ``, `null`} {
		if got, err := renderTable([]Response{{Action: podsIn, Body: []byte(body)}}); err == nil {
			t.Errorf("%s is shown as %q", body, got)
		}
	}
}

// A list never fills an agent's context, and says what it left out. What was
// fetched but not shown must not be skipped by going on from its end.
func TestRenderTableCuts(t *testing.T) {
	var rows []string
	for i := range 500 {
		rows = append(rows, fmt.Sprintf(`{"cells":["%s-%d","1/1","Running",0,"3d"]}`, strings.Repeat("x", 100), i))
	}
	got, err := renderTable([]Response{{Action: podsIn, Body: []byte(podTable(`,"continue":"abc","remainingItemCount":4500`, rows...))}})
	if err != nil || len(got) > maxBytes+200 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	shown := len(lines) - 3 // but for the head and two lines at the end
	if want := fmt.Sprintf("%s-%d ", strings.Repeat("x", 100), shown-1); !strings.HasPrefix(lines[shown], want) {
		t.Errorf("the last row is %q; want %q", lines[shown], want)
	}
	if want := fmt.Sprintf("Cut at %d of the 500 fetched: narrow with label_selector, field_selector or limit.", shown); lines[shown+1] != want {
		t.Errorf("got %q; want %q", lines[shown+1], want)
	}
	if want := fmt.Sprintf("%d of 5000 shown.", shown); lines[shown+2] != want {
		t.Errorf("got %q; want %q", lines[shown+2], want)
	}
	if strings.Contains(got, "abc") {
		t.Error("going on with the handle would skip the rows that were cut")
	}

	// One cell that is too large does not make every row as wide.
	got, err = renderTable([]Response{{Action: podsIn, Body: []byte(podTable("", `{"cells":["`+strings.Repeat("x", 2*maxBytes)+`"]}`, `{"cells":["b"]}`))}})
	if want := strings.Repeat("x", maxCell) + "...\nb\nCells are cut at 120 characters; get_resource shows one whole.\n"; err != nil || !strings.HasSuffix(got, want) {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestRenderObject(t *testing.T) {
	for _, row := range []struct {
		name   string
		action action.Action
		body   string
		want   string
	}{
		{"without bookkeeping", getCM, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"shop","uid":"u","managedFields":[{"manager":"kubectl"}],
			"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"data\":{\"a\":\"1\"}}","team":"shop"}},"data":{"size":"1","yes":"yes","text":"a\nb\n"},"binaryData":null,"immutable":false}`, `apiVersion: v1
binaryData: null
data:
  size: "1"
  text: |
    a
    b
  "yes": "yes"
immutable: false
kind: ConfigMap
metadata:
  annotations:
    team: shop
  name: a
  namespace: shop
  uid: u
`},
		{"a Secret", getDB, `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"db","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"stringData\":{\"password\":\"hunter2\"}}"}},
			"type":"Opaque","data":{"password":"aHVudGVyMg==","user":"YWRtaW4="},"stringData":{"x":"hunter2"}}`, `apiVersion: v1
data:
  password: '***'
  user: '***'
kind: Secret
metadata:
  name: db
stringData:
  x: '***'
type: Opaque
`},
		{"a Secret that does not say so", getDB, `{"metadata":{"name":"db"},"data":{"password":"aHVudGVyMg=="}}`, "data:\n  password: '***'\nmetadata:\n  name: db\n"},
		{"whole numbers stay whole", getCM, `{"a":9007199254740993,"b":1.5,"c":1}`, "a: 9007199254740993\nb: 1.5\nc: 1\n"},
		{"invisible characters do not stay so", getCM, `{"a":"x\u202ey\u0007"}`, "a: \"x\u202ey\\a\"\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := renderObject([]Response{{Action: row.action, Body: []byte(row.body)}})
			if err != nil || got != row.want {
				t.Errorf("%v\ngot\n%s\nwant\n%s", err, got, row.want)
			}
		})
	}
	for _, body := range []string{``, `not JSON`, `[]`} {
		if got, err := renderObject([]Response{{Action: getCM, Body: []byte(body)}}); err == nil {
			t.Errorf("%s is shown as %q", body, got)
		}
	}
}

func TestRenderObjectCuts(t *testing.T) {
	body, _ := json.Marshal(map[string]any{"data": strings.Repeat("ü", maxBytes)})
	got, err := renderObject([]Response{{Action: getCM, Body: body}})
	text, note, found := strings.Cut(got, "\n(")
	if err != nil || !found || len(text) > maxBytes || len(text) < maxBytes-4 {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	if want := fmt.Sprintf("the first %d of %d bytes; to see less: name what you need in fields, such as metadata.labels)\n(bytes by key: data %d)\n", len(text), 2*maxBytes+len("data: \n"), 2*maxBytes+1); note != want {
		t.Errorf("the note is %q; want %q", note, want)
	}
	if strings.Trim(text, "ü") != "data: " {
		t.Errorf("cut within a character: %q", text[len(text)-4:])
	}
}

// Of a field that is larger than what is shown, it is said how large and of what.
func TestRenderFieldCuts(t *testing.T) {
	data := map[string]any{"large.txt": strings.Repeat("x", 2*maxBytes), "small": "y"}
	for i := range 2 * maxSizes {
		data[fmt.Sprintf("key-%d", i)] = ""
	}
	body, _ := json.Marshal(map[string]any{"metadata": map[string]any{"name": "a"}, "data": data})
	get := getCM
	get.Options.Fields = []string{".metadata.name", ".data", ".data['large.txt']", ".metadata.name"}
	got, err := renderObject([]Response{{Action: get, Body: body}})
	if err != nil || len(got) > maxBytes+1500 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	says(t, got, "metadata.name: a\n", "\n(data is 66", "bytes; the first 32751 are shown)\n", "(bytes by key: large.txt 65537, small 4, key-0 3, ", ", and 22 more)\n",
		"\n(data['large.txt'] is 65556 bytes and not shown: name less in fields)\n(metadata.name is 17 bytes and not shown: name less in fields)\n")
}

func TestRenderDeleted(t *testing.T) {
	const status = `{"kind":"Status","status":"Success"}`
	for body, want := range map[string]string{
		status:                      "deleted",
		``:                          "deleted",
		`{"metadata":{"name":"a"}}`: "deleted", // as it was before
		`{"metadata":{"deletionTimestamp":"2026-03-14T12:00:00Z","deletionGracePeriodSeconds":0}}`:                                  "deleted",
		`{"metadata":{"deletionTimestamp":"2026-03-14T12:00:30Z","deletionGracePeriodSeconds":30}}`:                                 "is being deleted",
		`{"metadata":{"deletionTimestamp":"2026-03-14T12:00:00Z","deletionGracePeriodSeconds":0,"finalizers":["a.example/b","c"]}}`: "is being deleted; waits for finalizers a.example/b, c",
		`{"metadata":{"deletionTimestamp":"2026-03-14T12:00:00Z"},"spec":{"finalizers":["kubernetes"]}}`:                            "is being deleted; waits for finalizers kubernetes",
	} {
		got, err := tool(t, "delete_resource").Render([]Response{{Action: getCM, Body: []byte(body)}})
		if err != nil || got != "configmaps shop/a "+want {
			t.Errorf("%s: %q, %v; want %s", body, got, err, want)
		}
	}
}

func TestRenderLog(t *testing.T) {
	line := strings.Repeat("x", 99) + "\n"
	omitted, err := renderLog([]Response{{Body: []byte("d of a line\nlast\n"), Omitted: 1000}})
	if want := "(the last 5 of 1017 bytes; narrow with tail_lines, since_seconds or grep)\nlast\n"; err != nil || omitted != want {
		t.Errorf("with some left out before: %q, %v; want %q", omitted, err, want)
	}
	for _, row := range []struct{ name, log, note, text string }{
		{"short", "a\nb\n", "", "a\nb\n"},
		{"empty", "", "", "The log is empty."},
		{"not UTF-8", "a\xff\xfeb\n", "", "a\uFFFDb\n"},
		{"as much as is shown", strings.Repeat("x", maxBytes), "", strings.Repeat("x", maxBytes)},
		{"long: the end, whole lines", "first\n" + strings.Repeat(line, 1000) + "last", "(the last 32704 of 100010 bytes; narrow with tail_lines, since_seconds or grep)\n", strings.Repeat(line, 327) + "last"},
		{"one long line", strings.Repeat("x", 2*maxBytes), "(the last 32768 of 65536 bytes; narrow with tail_lines, since_seconds or grep)\n", strings.Repeat("x", maxBytes)},
		{"one long line with its end", strings.Repeat("x", 2*maxBytes) + "\n", "(the last 32768 of 65537 bytes; narrow with tail_lines, since_seconds or grep)\n", strings.Repeat("x", maxBytes-1) + "\n"},
		{"one long line of long characters", "x" + strings.Repeat("€", maxBytes), "(the last 32766 of 98305 bytes; narrow with tail_lines, since_seconds or grep)\n", strings.Repeat("€", maxBytes/3)},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := renderLog([]Response{{Body: []byte(row.log)}})
			if want := row.note + row.text; err != nil || got != want {
				t.Errorf("%v\ngot  %.120q (%d bytes)\nwant %.120q (%d bytes)", err, got, len(got), want, len(want))
			}
		})
	}
}

func TestRenderChange(t *testing.T) {
	namespace := action.Action{Verb: action.Delete, Resource: action.Resource{Version: "v1", Resource: "namespaces"}, Name: "shop"}
	for _, row := range []struct {
		name, verb, want string
		responses        []Response
	}{
		{"one", "deleted", "namespaces shop deleted", []Response{{Action: namespace, Body: []byte(`{"kind":"Status","status":"Success"}`)}}},
		{"several", "applied", "configmaps shop/a applied\nsecrets shop/db applied", []Response{{Action: getCM}, {Action: getDB, Body: []byte(`{"data":{"a":"aHVudGVyMg=="}}`)}}},
		{"a scale", "scaled", "deployments.apps shop/web scaled to 3 replicas", []Response{{Action: scaleWeb, Body: []byte(`{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{"name":"web"},"spec":{"replicas":3},"status":{"replicas":2}}`)}}},
		{"a scale to nothing", "scaled", "deployments.apps shop/web scaled to 0 replicas", []Response{{Action: scaleWeb, Body: []byte(`{"kind":"Scale","spec":{},"status":{"replicas":2}}`)}}},
		{"a name that was made up", "created", "configmaps shop/a-x7f2q created\nconfigmaps shop/b created", []Response{
			{Action: action.Action{Resource: getCM.Resource, Namespace: "shop"}, Body: []byte(`{"kind":"ConfigMap","metadata":{"generateName":"a-","name":"a-x7f2q","namespace":"shop"}}`)},
			{Action: action.Action{Resource: getCM.Resource, Namespace: "shop", Name: "b"}, Body: []byte(`{"metadata":{"name":"b"}}`)},
		}},
		{"none", "applied", "", nil},
	} {
		got, err := renderChange(row.verb)(row.responses)
		if err != nil || got != row.want {
			t.Errorf("%s: %q, %v; want %q", row.name, got, err, row.want)
		}
	}
	for _, a := range []action.Action{scaleWeb, {Verb: action.Create}} {
		if got, err := renderChange("changed")([]Response{{Action: a, Body: []byte(`<html>`)}}); err == nil {
			t.Errorf("%s: an answer that cannot be read is shown as %q", a, got)
		}
	}
}

// A table's cells are masked before they are cut, and under the names of their columns.
func TestTableIsMasked(t *testing.T) {
	token := "gh" + "p_" + strings.Repeat("aB3dE5fG7h", 4)[:36]
	body := fmt.Sprintf(`{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"columnDefinitions":[{"name":"Name","priority":0},{"name":"Password","priority":0},{"name":"Message","priority":0}],
		"rows":[{"cells":["gear","hunter2-Of-The-Test9",%q]}]}`, strings.Repeat("word ", 18)+token)
	text, err := renderTable([]Response{{Action: podsIn, Body: []byte(body)}})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "hunter2") || strings.Contains(text, token[:12]) || !strings.Contains(text, "gear") || strings.Count(text, "***") != 2 {
		t.Errorf("shown as %s", text)
	}
}

// Whatever a table is, what is shown of it is lines, and no more than may be shown.
func FuzzTable(f *testing.F) {
	for _, seed := range []string{
		podTable("", `{"cells":["web-1","1/1"]}`), podTable(`,"continue":"more","remainingItemCount":7`, `{"cells":["web-1","1/1"]}`),
		`{"kind":"Table","rows":[{"cells":[1,null,{"a":[]}],"object":{"metadata":{"namespace":"shop"}}}],"columnDefinitions":[{"name":"Name"},{"name":"Password"},{"name":"Wide","priority":1}]}`,
		`{"kind":"Table","columnDefinitions":null,"rows":[{"cells":null,"object":null}]}`,
		`{"kind":"Table","columnDefinitions":[{"name":"` + strings.Repeat("wide ", 10_000) + `"}],"rows":[{"cells":["a\nb"]}]}`,
		`{"kind":"PodList","items":[]}`,
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, everywhere bool) {
		list := podsIn
		if everywhere {
			list = podsAll
		}
		text, err := renderTable([]Response{{Action: list, Body: body}})
		if err != nil {
			return
		}
		if lines, _, _ := strings.Cut(text, "Narrow with"); len(lines) > maxBytes+1000 { // the API server's own token follows
			t.Errorf("%d bytes are shown", len(text))
		}
		if strings.Contains(text, " -") && !bytes.Contains(body, []byte("-")) {
			t.Errorf("fewer than none are shown: %s", text)
		}
	})
}
