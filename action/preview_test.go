package action

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

// object decodes JSON; an empty text is no object.
func object(t *testing.T, text string) map[string]any {
	t.Helper()
	if text == "" {
		return nil
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func TestDiff(t *testing.T) {
	for _, row := range []struct{ name, before, after, want string }{
		{"nothing", `{"a":{"b":[1,{"c":null}]}}`, `{"a":{"b":[1,{"c":null}]}}`, `null`},
		{"no object at all", ``, ``, `null`},
		{"replace", `{"spec":{"replicas":1}}`, `{"spec":{"replicas":3}}`, `[{"op":"replace","path":"/spec/replicas","old":1,"new":3}]`},
		{"add", `{"spec":{}}`, `{"spec":{"replicas":3}}`, `[{"op":"add","path":"/spec/replicas","new":3}]`},
		{"remove", `{"spec":{"replicas":3}}`, `{"spec":{}}`, `[{"op":"remove","path":"/spec/replicas","old":3}]`},
		{"add null", `{}`, `{"a":null}`, `[{"op":"add","path":"/a"}]`},
		{"remove null", `{"a":null}`, `{}`, `[{"op":"remove","path":"/a"}]`},
		{"to null", `{"a":1}`, `{"a":null}`, `[{"op":"replace","path":"/a","old":1}]`},
		{"zero values are values", `{"a":0,"b":false,"c":""}`, `{"a":1,"b":true,"c":"x"}`,
			`[{"op":"replace","path":"/a","old":0,"new":1},{"op":"replace","path":"/b","old":false,"new":true},{"op":"replace","path":"/c","old":"","new":"x"}]`},
		{"number and text", `{"a":1}`, `{"a":"1"}`, `[{"op":"replace","path":"/a","old":1,"new":"1"}]`},
		{"map and text", `{"a":{"b":1}}`, `{"a":"b"}`, `[{"op":"replace","path":"/a","old":{"b":1},"new":"b"}]`},
		{"list and map", `{"a":[1]}`, `{"a":{"0":1}}`, `[{"op":"replace","path":"/a","old":[1],"new":{"0":1}}]`},
		{"nested maps, in path order", `{"z":1,"a":{"c":1,"b":{"x":1}}}`, `{"a":{"d":1,"b":{"x":2}},"z":2}`,
			`[{"op":"replace","path":"/a/b/x","old":1,"new":2},{"op":"remove","path":"/a/c","old":1},{"op":"add","path":"/a/d","new":1},{"op":"replace","path":"/z","old":1,"new":2}]`},
		{"list item changed", `{"a":[1,2,3]}`, `{"a":[1,5,3]}`, `[{"op":"replace","path":"/a/1","old":2,"new":5}]`},
		{"list longer", `{"a":[1]}`, `{"a":[1,2]}`, `[{"op":"add","path":"/a/1","new":2}]`},
		{"list shorter", `{"a":[1,2]}`, `{"a":[1]}`, `[{"op":"remove","path":"/a/1","old":2}]`},
		{"list emptied", `{"a":[1]}`, `{"a":[]}`, `[{"op":"remove","path":"/a/0","old":1}]`},
		{"object in a list", `{"a":[{"image":"x:1"}]}`, `{"a":[{"image":"x:2"}]}`, `[{"op":"replace","path":"/a/0/image","old":"x:1","new":"x:2"}]`},
		{"keys are escaped", `{"metadata":{"annotations":{"a/b~c":"1"}}}`, `{"metadata":{"annotations":{"a/b~c":"2","~1":"x"}}}`,
			`[{"op":"replace","path":"/metadata/annotations/a~1b~0c","old":"1","new":"2"},{"op":"add","path":"/metadata/annotations/~01","new":"x"}]`},
		{"empty key", `{"":1}`, `{"":2}`, `[{"op":"replace","path":"/","old":1,"new":2}]`},
		{"noise", `{"metadata":{"managedFields":[1],"resourceVersion":"1","generation":1,"uid":"a","creationTimestamp":"x"},"status":{"a":1}}`,
			`{"metadata":{"managedFields":[2],"resourceVersion":"2","generation":2,"uid":"b","creationTimestamp":"y"}}`, `null`},
		{"noise elsewhere is not noise", `{"spec":{"status":1,"metadata":{"uid":"a","generation":1}}}`, `{"spec":{"status":2,"metadata":{"uid":"b","generation":2}}}`,
			`[{"op":"replace","path":"/spec/metadata/generation","old":1,"new":2},{"op":"replace","path":"/spec/metadata/uid","old":"a","new":"b"},{"op":"replace","path":"/spec/status","old":1,"new":2}]`},
		{"a key that looks like a path is not noise", `{"metadata/uid":1}`, `{"metadata/uid":2}`, `[{"op":"replace","path":"/metadata~1uid","old":1,"new":2}]`},
		{"owners, finalizers and deletion are not noise", `{"metadata":{}}`, `{"metadata":{"ownerReferences":[],"finalizers":["x"],"deletionTimestamp":"t"}}`,
			`[{"op":"add","path":"/metadata/deletionTimestamp","new":"t"},{"op":"add","path":"/metadata/finalizers","new":["x"]},{"op":"add","path":"/metadata/ownerReferences","new":[]}]`},
		{"new object, without noise", ``, `{"metadata":{"name":"x","uid":"u","managedFields":[1]},"spec":1,"status":2}`, `[{"op":"add","path":"","new":{"metadata":{"name":"x"},"spec":1}}]`},
		{"gone object, without noise", `{"metadata":{"name":"x","resourceVersion":"1"},"status":2}`, ``, `[{"op":"remove","path":"","old":{"metadata":{"name":"x"}}}]`},
		{"empty object is an object", ``, `{}`, `[{"op":"add","path":"","new":{}}]`},
	} {
		t.Run(row.name, func(t *testing.T) {
			before, after := object(t, row.before), object(t, row.after)
			got, err := Canonical(Diff(before, after))
			if err != nil || string(got) != row.want {
				t.Errorf("got  %s, %v\nwant %s", got, err, row.want)
			}
			if back, _ := Canonical(before); before != nil && string(back) != mustCanonical(t, object(t, row.before)) {
				t.Errorf("Diff changed its input: %s", back)
			}
			if back, _ := Canonical(after); after != nil && string(back) != mustCanonical(t, object(t, row.after)) {
				t.Errorf("Diff changed its input: %s", back)
			}
		})
	}
}

func mustCanonical(t *testing.T, v any) string {
	t.Helper()
	data, err := Canonical(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPreviewIdentity(t *testing.T) {
	p := NewPreview(object(t, `{"metadata":{"uid":"u","resourceVersion":"7"}}`), object(t, `{"metadata":{"uid":"other","resourceVersion":"8"}}`))
	if p.UID() != "u" || p.ResourceVersion() != "7" {
		t.Errorf("UID %q and version %q are not the live object's", p.UID(), p.ResourceVersion())
	}
	for _, live := range []string{``, `{}`, `{"metadata":[]}`, `{"metadata":{"uid":7}}`} {
		if p := NewPreview(object(t, live), nil); p.UID() != "" {
			t.Errorf("UID of %s = %q", live, p.UID())
		}
	}
}

// dryRuns are pairs of answers to the same creation. The API server makes up
// some values afresh each time; they must not make an approved creation stale.
var dryRuns = []struct{ name, one, two string }{
	{"uid, time and versions",
		`{"kind":"ConfigMap","metadata":{"name":"c","uid":"1","creationTimestamp":"a","resourceVersion":"1"},"data":{"a":"b"}}`,
		`{"kind":"ConfigMap","metadata":{"name":"c","uid":"2","creationTimestamp":"b","managedFields":[{"time":"b"}]},"data":{"a":"b"}}`},
	{"Service addresses and ports",
		`{"kind":"Service","metadata":{"name":"s"},"spec":{"clusterIP":"10.0.0.1","clusterIPs":["10.0.0.1"],"healthCheckNodePort":1,"ports":[{"port":80,"nodePort":30001}]}}`,
		`{"kind":"Service","metadata":{"name":"s"},"spec":{"clusterIP":"10.0.0.9","clusterIPs":["10.0.0.9"],"healthCheckNodePort":2,"ports":[{"port":80,"nodePort":30002}]}}`},
	{"Job controller-uid",
		`{"kind":"Job","metadata":{"name":"j","labels":{"controller-uid":"1","batch.kubernetes.io/controller-uid":"1","job-name":"j"}},"spec":{"selector":{"matchLabels":{"batch.kubernetes.io/controller-uid":"1"}},"template":{"metadata":{"labels":{"controller-uid":"1","job-name":"j"}}}}}`,
		`{"kind":"Job","metadata":{"name":"j","labels":{"controller-uid":"2","batch.kubernetes.io/controller-uid":"2","job-name":"j"}},"spec":{"selector":{"matchLabels":{"batch.kubernetes.io/controller-uid":"2"}},"template":{"metadata":{"labels":{"controller-uid":"2","job-name":"j"}}}}}`},
	{"Pod token volume",
		`{"kind":"Pod","metadata":{"name":"p"},"spec":{"volumes":[{"name":"kube-api-access-ab12c"}],"containers":[{"volumeMounts":[{"name":"kube-api-access-ab12c"}]}]}}`,
		`{"kind":"Pod","metadata":{"name":"p"},"spec":{"volumes":[{"name":"kube-api-access-zz9zz"}],"containers":[{"volumeMounts":[{"name":"kube-api-access-zz9zz"}]}]}}`},
	{"generated name",
		`{"kind":"Pod","metadata":{"generateName":"p-","name":"p-1"}}`,
		`{"kind":"Pod","metadata":{"generateName":"p-","name":"p-2"}}`},
	{"generated name of a Job, in its labels too",
		`{"kind":"Job","metadata":{"generateName":"j-","name":"j-1"},"spec":{"template":{"metadata":{"labels":{"job-name":"j-1","batch.kubernetes.io/job-name":"j-1"}}}}}`,
		`{"kind":"Job","metadata":{"generateName":"j-","name":"j-2"},"spec":{"template":{"metadata":{"labels":{"job-name":"j-2","batch.kubernetes.io/job-name":"j-2"}}}}}`},
}

func TestPreviewDigestOfNewObjectIsStable(t *testing.T) {
	for _, row := range dryRuns {
		one, two := NewPreview(nil, object(t, row.one)), NewPreview(nil, object(t, row.two))
		if previewDigest(t, one) != previewDigest(t, two) {
			t.Errorf("%s: the same creation has two digests", row.name)
		}
		if mustCanonical(t, one.Result) != mustCanonical(t, object(t, row.one)) {
			t.Errorf("%s: PreviewDigest changed the preview", row.name)
		}
	}
}

func TestPreviewDigestDependsOnEverythingElse(t *testing.T) {
	const live = `{"kind":"Deployment","metadata":{"name":"web","uid":"u","resourceVersion":"1"},"spec":{"replicas":1}}`
	const result = `{"kind":"Deployment","metadata":{"name":"web","uid":"u","resourceVersion":"1"},"spec":{"replicas":3}}`
	base := []Preview{NewPreview(object(t, live), object(t, result))}
	fresh := func(text string) []Preview { return []Preview{NewPreview(nil, object(t, text))} }
	changed := func(live, result string) []Preview {
		return []Preview{NewPreview(object(t, live), object(t, result))}
	}

	rows := []struct {
		name     string
		previews []Preview
	}{
		{"itself", base},
		{"another uid: deleted and made again", changed(strings.Replace(live, `"u"`, `"v"`, 1), result)},
		{"other value before", changed(strings.Replace(live, `:1}}`, `:2}}`, 1), result)},
		{"other value after", changed(live, strings.Replace(result, `:3}`, `:4}`, 1))},
		{"what a webhook adds", changed(live, strings.Replace(result, `"replicas":3`, `"replicas":3,"paused":true`, 1))},
		{"would be gone", changed(live, ``)},
		{"was not there", changed(``, result)},
		{"no change any more", changed(result, result)},
		{"twice", append(base, base...)},
		{"none", nil},
		{"new object, other value", fresh(strings.Replace(result, `:3}`, `:4}`, 1))},
		{"new Service", fresh(`{"kind":"Service","metadata":{"name":"s"},"spec":{"type":"ClusterIP","ports":[{"port":80}]}}`)},
		{"new Service, another type", fresh(`{"kind":"Service","metadata":{"name":"s"},"spec":{"type":"LoadBalancer","ports":[{"port":80}]}}`)},
		{"new Service, another port", fresh(`{"kind":"Service","metadata":{"name":"s"},"spec":{"type":"ClusterIP","ports":[{"port":81}]}}`)},
		{"new Service, external address", fresh(`{"kind":"Service","metadata":{"name":"s"},"spec":{"type":"ClusterIP","externalIPs":["1.2.3.4"],"ports":[{"port":80}]}}`)},
		{"a clusterIP that is not a Service's", fresh(`{"kind":"Gateway","metadata":{"name":"s"},"spec":{"clusterIP":"10.0.0.1"}}`)},
		{"a clusterIP that is not a Service's, another", fresh(`{"kind":"Gateway","metadata":{"name":"s"},"spec":{"clusterIP":"10.0.0.2"}}`)},
		{"given name", fresh(`{"kind":"Pod","metadata":{"name":"p-1"}}`)},
		{"another given name", fresh(`{"kind":"Pod","metadata":{"name":"p-2"}}`)},
		{"generated name", fresh(`{"kind":"Pod","metadata":{"generateName":"p-","name":"p-1"}}`)},
		{"another generateName", fresh(`{"kind":"Pod","metadata":{"generateName":"q-","name":"p-1"}}`)},
		{"a label that is a given name", fresh(`{"kind":"Pod","metadata":{"name":"p-1","labels":{"a":"p-1"}}}`)},
		{"another label that is a given name", fresh(`{"kind":"Pod","metadata":{"name":"p-1","labels":{"a":"p-2"}}}`)},
		{"token volume", fresh(`{"kind":"Pod","spec":{"volumes":[{"name":"kube-api-access-ab12c"}]}}`)},
		{"no token volume", fresh(`{"kind":"Pod","spec":{"volumes":[]}}`)},
		{"a volume that only begins like one", fresh(`{"kind":"Pod","spec":{"volumes":[{"name":"kube-api-access-ab12cd"}]}}`)},
		{"another that only begins like one", fresh(`{"kind":"Pod","spec":{"volumes":[{"name":"kube-api-access-ab12ce"}]}}`)},
		{"a label beside controller-uid", fresh(`{"kind":"Job","metadata":{"labels":{"controller-uid":"1","team":"a"}}}`)},
		{"another label beside controller-uid", fresh(`{"kind":"Job","metadata":{"labels":{"controller-uid":"1","team":"b"}}}`)},
	}
	seen := map[string]string{}
	for _, row := range rows {
		digest := previewDigest(t, row.previews...)
		if same, dup := seen[digest]; dup {
			t.Errorf("%s: same digest as %s", row.name, same)
		}
		seen[digest] = row.name
	}
}

// Only the generated values of new objects are left out: on an object that is
// there, a changed clusterIP is a change like any other.
func TestPreviewDigestKeepsGeneratedValuesOfLiveObjects(t *testing.T) {
	const live = `{"kind":"Service","metadata":{"uid":"u"},"spec":{"clusterIP":"10.0.0.1"}}`
	one := NewPreview(object(t, live), object(t, strings.Replace(live, "0.1", "0.2", 1)))
	two := NewPreview(object(t, live), object(t, strings.Replace(live, "0.1", "0.3", 1)))
	if previewDigest(t, one) == previewDigest(t, two) {
		t.Error("a live Service's new address does not count")
	}
}

func TestPreviewDigestKey(t *testing.T) {
	p := []Preview{NewPreview(nil, object(t, `{"kind":"Secret","data":{"a":"b"}}`))}
	got, err := PreviewDigest(p, []byte("key"))
	if err != nil || !strings.HasPrefix(got, "hmac-sha256:") {
		t.Errorf("PreviewDigest with a key = %s, %v", got, err)
	}
}

func previewDigest(t *testing.T, previews ...Preview) string {
	t.Helper()
	digest, err := PreviewDigest(previews, nil)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// The items of lists are known by their names, whatever their numbers are; one that
// takes another's place is neither.
func TestListNames(t *testing.T) {
	object := func(containers ...any) map[string]any {
		return map[string]any{"spec": map[string]any{"containers": containers}}
	}
	container := func(name, image string) map[string]any { return map[string]any{"name": name, "image": image} }
	for _, row := range []struct {
		name         string
		live, result map[string]any
		want         map[string]string
	}{
		{"a changed item", object(container("web", "1"), container("log", "1")), object(container("web", "1"), container("log", "2")),
			map[string]string{"/spec/containers/1": "/spec/containers[log]"}},
		{"a new item", object(container("web", "1")), object(container("web", "1"), container("log", "2")),
			map[string]string{"/spec/containers/1": "/spec/containers[log]"}},
		{"an item that goes", object(container("web", "1"), container("log", "1")), object(container("web", "1")),
			map[string]string{"/spec/containers/1": "/spec/containers[log]"}},
		{"another in its place", object(container("web", "1")), object(container("log", "1")),
			map[string]string{"/spec/containers/0": "/spec/containers[web>log]"}},
		{"items without names", object("a"), object("b"), map[string]string{}},
		{"no list", map[string]any{"spec": map[string]any{"name": "a"}}, map[string]any{"spec": map[string]any{"name": "b"}}, map[string]string{}},
	} {
		if got := NewPreview(row.live, row.result).ListNames(); !maps.Equal(got, row.want) {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}
