package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
)

// Every field of a pod through which a container could read a Secret.
func TestSecretReferences(t *testing.T) {
	for spec, want := range map[string]string{
		`{"containers":[{"env":[{"name":"a","valueFrom":{"secretKeyRef":{"name":"s","key":"k","optional":true}}}]}]}`:                                  "s",
		`{"containers":[{"envFrom":[{"secretRef":{"name":"s"}}]}]}`:                                                                                    "s",
		`{"initContainers":[{"envFrom":[{"prefix":"P_","secretRef":{"name":"s"}}]}],"ephemeralContainers":[{"envFrom":[{"secretRef":{"name":"t"}}]}]}`: "s t",
		`{"volumes":[{"secret":{"secretName":"s"}},{"secret":{"secretName":"s"}},{"secret":{"secretName":"b","items":[{"key":"k"}]}}]}`:                "b s",
		`{"volumes":[{"projected":{"sources":[{"configMap":{"name":"c"}},{"secret":{"name":"s"}}]}}]}`:                                                 "s",
		`{"volumes":[{"csi":{"nodePublishSecretRef":{"name":"s"},"volumeAttributes":{"secretName":"a"}}}]}`:                                            "a s",
		`{"volumes":[{"azureFile":{"secretName":"s"}},{"iscsi":{"secretRef":{"name":"i"}}},{"flexVolume":{"secretRef":{"name":"f"}}}]}`:                "f i s",
		`{"volumes":[{"cephfs":{"secretRef":{"name":"s"}}},{"rbd":{"secretRef":{"name":"r"}}},{"scaleIO":{"secretRef":{"name":"q"}}}]}`:                "q r s",
		`{"volumes":[{"ephemeral":{"volumeClaimTemplate":{"spec":{"secret":{"name":"s"}}}}}]}`:                                                         "s",
		`{"imagePullSecrets":[{"name":"s"}],"containers":[{"envFrom":[{"configMapRef":{"name":"c"}}]}]}`:                                               "",
		`{"containers":[{"name":"secret","env":[{"name":"secretName","value":"s"}],"args":["secretRef"]}]}`:                                            "",
		`{"containers":[{"secretRef":"odd"}],"volumes":[{"secret":{"secretName":["odd"]}},{"secret":null},null]}`:                                      "",
	} {
		if got := strings.Join((podSpec{spec: object(t, spec)}).secrets(), " "); got != want {
			t.Errorf("%s: %q; want %q", spec, got, want)
		}
	}
	// A pod within a pod has its own, and none is lost between the two.
	pods, err := findPods(object(t, `{"containers":[{"x":{"envFrom":[{"secretRef":{"name":"in"}}],"volumes":[{}]}}],"y":{"secretKeyRef":{"name":"out","volumes":[{"secret":{"secretName":"deep"}}]}}}`))
	var got []string
	for _, p := range pods {
		got = append(got, p.path+"="+strings.Join(p.secrets(), ","))
	}
	if want := "=out /containers/0/x=in /y/secretKeyRef=deep"; err != nil || strings.Join(got, " ") != want {
		t.Errorf("got %v, %v; want %s", got, err, want)
	}
}

// A pod is known by its shape, wherever it stands.
func TestFindPods(t *testing.T) {
	for _, row := range []struct{ object, want string }{
		{`{"spec":{"containers":[{}]}}`, "/spec"},
		{`{"containers":[{}]}`, ""},
		{`{"spec":{"initContainers":[{}]},"status":{"ephemeralContainers":[1,{}]}}`, "/spec /status"},
		{`{"a/b":{"~":[[{"containers":[{}]}]]}}`, "/a~1b/~0/0/0"},
		{`{"spec":{"hostPID":true},"a":{"hostIPC":true},"b":{"hostNetwork":true}}`, "/a /b /spec"},
		{`{"spec":{"serviceAccountName":"a"},"b":{"serviceAccount":"a"},"c":{"volumes":[{}]}}`, "/b /c /spec"},
		{`{"spec":{"hostPID":false,"serviceAccountName":"","serviceAccount":{"name":"a"},"volumes":[],"containers":[]},"a":{"containers":["x"]},"b":{"containers":{"x":{}}}}`, "none"},
	} {
		pods, err := findPods(object(t, row.object))
		got := []string{}
		for _, p := range pods {
			got = append(got, p.path)
		}
		if text := strings.Join(got, " "); err != nil || text != row.want && (row.want != "none" || len(got) > 0) {
			t.Errorf("%s: %q, %v; want %q", row.object, got, err, row.want)
		}
	}
}

// An object that is made to hold more pods than anybody looks at, or to hide
// one deeper, is refused, and neither takes long.
func TestTooManyPods(t *testing.T) {
	many := func(n int) map[string]any {
		list := make([]any, n)
		for i := range list {
			list[i] = map[string]any{"containers": []any{map[string]any{"name": "c"}}}
		}
		return map[string]any{"list": list}
	}
	deep := func(levels int, key string, pods bool) map[string]any {
		v := map[string]any{"containers": []any{map[string]any{"name": "c"}}}
		for range levels {
			if v = map[string]any{key: v}; pods {
				v["containers"] = []any{}
				v["volumes"] = []any{map[string]any{"name": "v"}}
			}
		}
		return v
	}
	w := guarded(t)
	for _, row := range []struct {
		name   string
		object map[string]any
		want   Effect
	}{
		{"some", many(50), Allow},
		{"many", many(50_000), Deny},
		{"some levels", deep(100, "key", false), Allow},
		{"a pod in a pod", deep(50, "key", true), Allow},
		{"many levels", deep(9_000, strings.Repeat("k", 100), false), Deny},
		{"many levels of pods", deep(9_000, "k", true), Deny},
	} {
		before := time.Now()
		preview := action.NewPreview(nil, row.object)
		d := w.with(func(r *Request) { r.Preview = &preview }).try(try{request: "apply websites.example.com shop/web"})
		if d.Effect != row.want || row.want == Deny && (!strings.Contains(d.Reason, tooManyPods) || !slices.Contains(d.Risks, RiskPrivilegeGained)) {
			t.Errorf("%s: %.500v; want %s", row.name, d, row.want)
		}
		if took := time.Since(before); took > 10*time.Second {
			t.Errorf("%s: took %s", row.name, took)
		}
	}
}

// Whatever an object looks like, looking for pods in it does not fail, and
// every list of containers is found, at the path where it stands.
func FuzzFindPods(f *testing.F) {
	for _, shape := range shapes {
		f.Add([]byte(strings.Replace(shape.object, "POD", plain, 1)))
	}
	for _, seed := range []string{
		`{"containers":[[{"containers":[{}]}],{"containers":[null,{"initContainers":[{}]}]}]}`, `{"":{"":[{"":{"/":{"~1":{"containers":[{"x":1}]}}}}]}}`,
		`{"spec":{"volumes":[{"projected":{"sources":[{"secret":{"name":7}}]}}],"serviceAccountName":["a"]},"metadata":[]}`, `{"containers":{"containers":[1.5e300,{}]}}`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v map[string]any
		if json.Unmarshal(data, &v) != nil {
			return
		}
		pods, err := findPods(v)
		if err != nil {
			if len(pods) < maxPods && len(data) <= maxPodPath {
				t.Errorf("%d pods: %v", len(pods), err)
			}
			return
		}
		found := map[string]bool{}
		for _, p := range pods {
			if found[p.path] {
				t.Errorf("%q is found twice", p.path)
			}
			found[p.path] = true
			if at := lookup(v, p.path); fmt.Sprint(at) != fmt.Sprint(p.spec) {
				t.Errorf("at %q is %v; found %v", p.path, at, p.spec)
			}
		}
		for _, path := range containersIn("", v) {
			if !found[path] {
				t.Errorf("the containers at %q are not found", path)
			}
		}
		all := podFacts{pods: pods}
		all.values()
		if _, err := all.check(); err != nil && !strings.HasPrefix(err.Error(), notAPod) {
			t.Error(err)
		}
	})
}

// lookup reads a JSON Pointer (RFC 6901).
func lookup(v any, path string) any {
	for _, step := range strings.Split(path, "/")[1:] {
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			var i int
			if _, err := fmt.Sscan(step, &i); err != nil {
				return nil
			}
			v = at[i]
		}
	}
	return v
}

// containersIn finds the maps with a list "containers" that has a map in it.
func containersIn(path string, v any) (found []string) {
	switch v := v.(type) {
	case map[string]any:
		if list, ok := v["containers"].([]any); ok && slices.ContainsFunc(list, func(item any) bool { _, ok := item.(map[string]any); return ok }) {
			found = append(found, path)
		}
		for key, value := range v {
			found = append(found, containersIn(path+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(key), value)...)
		}
	case []any:
		for i, item := range v {
			found = append(found, containersIn(fmt.Sprintf("%s/%d", path, i), item)...)
		}
	}
	return found
}
