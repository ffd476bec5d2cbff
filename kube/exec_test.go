package kube

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"countersign/action"
	"countersign/gate"
)

// A command that writes without end is given up after its time, with the
// beginning of what it wrote and how much more there was.
func TestExecForever(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerAuditID) != "op.1" {
			t.Errorf("Audit-ID %q", r.Header.Get(headerAuditID))
		}
		upgrader := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		chunk := append([]byte{1}, strings.Repeat("x\x00", 16<<10)...) // stream 1 is stdout
		for conn.WriteMessage(websocket.BinaryMessage, chunk) == nil {
		}
	}))
	defer server.Close()
	config := &rest.Config{Host: server.URL}
	client, err := rest.UnversionedRESTClientFor(setDefaults(config))
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{config: config, client: client}
	response, err := c.exec(context.Background(), action.Action{
		Verb: action.Create, Resource: action.Resource{Version: "v1", Resource: "pods"}, Subresource: action.Exec, Namespace: "shop", Name: "web",
		Options: action.Options{Command: []string{"yes"}, Container: "web", TimeoutSeconds: 1},
	}, "op.1", gate.Live{})
	if err != nil {
		t.Fatal(err)
	}
	body := string(response.Body)
	if !strings.Contains(body, `"timedOut":true`) || !strings.Contains(body, `"stdoutOmitted":`) || strings.Contains(body, `\u0000`) || len(body) > maxOutput+1000 {
		t.Errorf("%d bytes: %.200s", len(body), body)
	}
}

func setDefaults(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.GroupVersion = &schema.GroupVersion{}
	return dynamic.ConfigFor(config)
}

// A path without a namespace is not yet a request: the cluster says whether it
// is about all namespaces.
func TestActionOf(t *testing.T) {
	for _, row := range []struct{ method, url, want string }{
		{"GET", "/api/v1/pods?limit=500&fieldSelector=spec.nodeName%3Da", "list pods"},
		{"GET", "/api/v1/namespaces/shop/pods/web", "get pods shop/web"},
		{"GET", "/api/v1/namespaces/shop", "get namespaces shop"},
		{"GET", "/apis/apps/v1/namespaces/shop/deployments", "list deployments.apps in namespace shop"},
		{"GET", "/api/v1/namespaces/shop/pods/web/log", "get pods/log shop/web"},
		{"GET", "/api/v1/pods?watch=1", ""},
		{"DELETE", "/api/v1/namespaces/shop/pods/web", ""},
		{"POST", "/api/v1/namespaces/shop/pods", ""},
		{"GET", "/version", ""},
		{"GET", "/openapi/v3", ""},
	} {
		req := httptest.NewRequest(row.method, row.url, nil)
		a, err := actionOf(req)
		if got := a.String(); err == nil && got != row.want || (err != nil) != (row.want == "") {
			t.Errorf("%s %s: %s, %v; want %s", row.method, row.url, got, err, row.want)
		}
	}
}
