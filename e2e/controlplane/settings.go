package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// auditPolicy keeps one line for each request, without bodies, except for the chatter of
// the control plane itself. Controllers act as service accounts, and are kept.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "kwok"]
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*"]
- level: Metadata
`

// kwokSettings gives every container of every simulated pod the same log. Exec is not
// kwok's here: see node.go.
const kwokSettings = `apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterLogs
metadata:
  name: every-pod
spec:
  logs:
  - {logsFile: %q, previousLogsFile: %q}
`

// node is what the API server is told of a simulated node; kwok adds the rest.
const node = `{"apiVersion": "v1", "kind": "Node", "metadata": {
  "name": "node-%[1]d",
  "annotations": {"kwok.x-k8s.io/node": "fake"},
  "labels": {"kubernetes.io/hostname": "node-%[1]d", "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
}, "status": {
  "capacity": {"cpu": "32", "memory": "256Gi", "pods": "110"},
  "allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}
}}`

// publicDiscovery lets anybody read the OIDC discovery document and its keys, as an
// identity provider's are.
const publicDiscovery = `{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
  "metadata": {"name": "public-service-account-issuer-discovery"},
  "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:service-account-issuer-discovery"},
  "subjects": [
    {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"},
    {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}
  ]}`

func writeSettings(dir string) error {
	logs, previous := filepath.Join(dir, "pod.log"), filepath.Join(dir, "pod-previous.log")
	for path, content := range map[string]string{
		filepath.Join(dir, "audit-policy.yaml"): auditPolicy,
		filepath.Join(dir, "kwok.yaml"):         fmt.Sprintf(kwokSettings, logs, previous),
		logs:                                    podLog(time.Now(), 48, `stdout F level=info msg="cache refreshed" entries=214`),
		previous:                                podLog(time.Now().Add(-10*time.Minute), 12, `stderr F level=error msg="connecting to the orders database" error="connection refused"`),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// podLog is what a small web service would have written until a moment, in the CRI log
// format, with one extra line at the end.
func podLog(until time.Time, lines int, last string) string {
	paths := []string{"/", "/cart", "/products/41", "/healthz", "/checkout", "/products/7", "/assets/shop.css"}
	var b bytes.Buffer
	at := until.Add(-time.Duration(lines) * 2 * time.Second).UTC()
	write := func(text string) {
		fmt.Fprintf(&b, "%s %s\n", at.Format("2006-01-02T15:04:05.000000000Z07:00"), text)
		at = at.Add(1900*time.Millisecond + time.Duration(b.Len()%97)*time.Millisecond)
	}
	write(`stdout F level=info msg="starting" service=shop version=1.4.2`)
	for i := range lines - 2 {
		status, level, stream := 200, "info", "stdout"
		if i%17 == 11 {
			status, level, stream = 503, "warn", "stderr"
		}
		write(fmt.Sprintf(`%s F level=%s msg="request" method=GET path=%s status=%d duration_ms=%d`,
			stream, level, paths[i%len(paths)], status, 3+i*7%41))
	}
	write(last)
	return b.String()
}
