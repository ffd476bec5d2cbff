package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/audit"
)

// What a name stands for is told once it is known, also that it may not be known;
// a cluster that cannot be reached is asked until the end.
func TestWatch(t *testing.T) {
	var configs []Config
	add := func(name, answer string, code int) string {
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || r.URL.Path != "/api/v1/namespaces/kube-system" {
				t.Errorf("%s is asked %s %s", name, r.Method, r.URL)
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			fmt.Fprint(w, answer)
		}))
		t.Cleanup(api.Close)
		file := filepath.Join(t.TempDir(), "kubeconfig")
		text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: c, context: {cluster: c}}]}`, api.URL)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// In the server's own name: nobody is impersonated.
		configs = append(configs, Config{Name: name, Kubeconfig: file, Impersonate: &Impersonate{}})
		return strings.TrimPrefix(api.URL, "http://")
	}
	known := add("known", `{"kind":"Namespace","metadata":{"uid":"u-1"}}`, 200)
	barred := add("barred", `{"kind":"Status","status":"Failure","reason":"Forbidden","code":403,"message":"no"}`, 403)
	add("empty", `{}`, 200)
	add("broken", `{"kind":"Status","status":"Failure","reason":"InternalError","code":500,"message":"no"}`, 500)
	clusters, err := New(configs, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	type told struct {
		audit.Cluster
		err error
	}
	found := make(chan told, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		clusters.Watch(ctx, func(c audit.Cluster, err error) { found <- told{c, err} })
	}()
	got := map[string]told{}
	for range 2 {
		one := <-found
		got[one.Name] = one
	}
	cancel()
	<-done
	if one := got["known"]; one.Cluster != (audit.Cluster{Name: "known", Server: known, UID: "u-1"}) || one.err != nil {
		t.Errorf("known is told as %+v", one)
	}
	if one := got["barred"]; one.Cluster != (audit.Cluster{Name: "barred", Server: barred}) || one.err == nil {
		t.Errorf("barred is told as %+v", one)
	}
	if len(found) > 0 {
		t.Errorf("more is told: %+v", <-found)
	}
	if _, err := clusters.UID(t.Context(), "empty"); err == nil {
		t.Error("an answer without a UID is taken")
	}
}
