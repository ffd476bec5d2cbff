package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// What was resolved is known until the cluster is asked anew what it serves, and
// not a moment longer: rules go by the version that it prefers.
func TestResolveForgets(t *testing.T) {
	var version atomic.Value
	version.Store("v1")
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		served := version.Load().(string)
		group := fmt.Sprintf(`{"groupVersion":"example.com/%[1]s","version":"%[1]s"}`, served)
		switch r.URL.Path {
		case "/api":
			fmt.Fprint(w, `{"kind":"APIVersions","versions":[]}`)
		case "/apis":
			fmt.Fprintf(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"example.com","versions":[%s],"preferredVersion":%s}]}`, group, group)
		case "/apis/example.com/" + served:
			fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"example.com/%s","resources":[{"name":"widgets","singularName":"widget","namespaced":true,"kind":"Widget","verbs":["get","list"]}]}`, served)
		default:
			http.NotFound(w, r)
		}
	}))
	defer api.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: c, context: {cluster: c}}]}`, api.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	clusters, err := New([]Config{{Name: "c", Kubeconfig: kubeconfig}}, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	resolve := func(apiVersion, kind, want string) {
		t.Helper()
		got, err := clusters.Resolve(t.Context(), "c", apiVersion, kind)
		if (err == nil) != (want != "") || got.Version != want {
			t.Errorf("%s %s is %+v, %v; want version %q", apiVersion, kind, got, err, want)
		}
	}
	resolve("", "Widgets", "v1")
	resolve("example.com/v1", "Widget", "v1")
	version.Store("v2")
	resolve("", "widgets", "v1")
	resolve("", "gadgets", "") // which makes it ask anew
	resolve("", "widgets", "v2")
	resolve("example.com/v1", "Widget", "")
	version.Store("v3")
	clusters.byName["c"].forget()
	resolve("", "widgets", "v3")
}
