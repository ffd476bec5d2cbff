package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	bin       string // folder with the binaries
	dir       string // folder of the cluster
	nodes     int
	audiences []string // accepted in tokens besides the issuer
	allAPIs   bool     // serve alpha and beta versions too
	freePorts func(n int) ([]string, error)
}

// ready is the line of JSON on standard output. Paths are absolute.
type ready struct {
	Kubeconfig string `json:"kubeconfig"`
	Kubectl    string `json:"kubectl"`
	Server     string `json:"server"`
	Issuer     string `json:"issuer"`
	CA         string `json:"ca"`
	AuditLog   string `json:"audit_log"`
	Dir        string `json:"dir"`
}

// startTimeout is far more than a start takes on a slow machine.
const startTimeout = 2 * time.Minute

// up starts a cluster, says so on stdout, and stops it when the context ends or one of
// its processes does. It returns nil only if it was the context, after the start.
func up(ctx context.Context, o options, stdout io.Writer) (err error) {
	// The children die with the thread that started them: see childAttr.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	unlock, err := claim(ctx, o.dir)
	if err != nil {
		return fmt.Errorf("using %s: %w", o.dir, err)
	}
	defer unlock()
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGUSR1)
	defer signal.Stop(again)

	for attempt := 1; ; attempt++ {
		c := &cluster{options: o, processes: processes{bin: o.bin, dir: o.dir, ended: make(chan *process, 8)}}
		err := c.start(ctx)
		taken := errors.Is(err, errAddressInUse) && attempt < 5
		if err == nil {
			err = c.serve(ctx, stdout, again)
		}
		c.stop()
		if !taken {
			return err
		}
	}
}

// claim marks the folder as ours and holds the marker's lock while we live. A folder with
// content but without the marker is somebody else's and is refused, because prepare
// removes what it finds.
func claim(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	marker := filepath.Join(dir, ".controlplane")
	if len(entries) > 0 && !exists(marker) {
		return nil, errors.New("the folder has other content; name a new or empty one with --dir")
	}
	unlock, err = lock(ctx, marker, nil)
	if err != nil {
		return nil, fmt.Errorf("another control plane runs in it: %w", err)
	}
	return unlock, nil
}

// cluster is one attempt to run a control plane.
type cluster struct {
	options
	processes   processes
	credentials *credentials
	server      string // URL of the API
	nodeServer  *http.Server
	nodeFailed  chan error
}

func (c *cluster) stop() {
	c.processes.stop()
	if c.nodeServer != nil {
		c.nodeServer.Close()
	}
}

// start returns when the cluster can be used. What it started is stopped by stop, also
// after an error.
func (c *cluster) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()

	if err := c.prepare(); err != nil {
		return fmt.Errorf("preparing %s: %w", c.dir, err)
	}
	ports, err := c.freePorts(4)
	if err != nil {
		return fmt.Errorf("finding free ports: %w", err)
	}
	etcdURL, peerURL, kwokAddress := "http://"+ports[0], "http://"+ports[1], ports[3]
	c.server = "https://" + ports[2]
	if err := c.credentials.writeKubeconfigs(c.dir, c.server); err != nil {
		return fmt.Errorf("writing kubeconfigs: %w", err)
	}
	nodePort, err := c.serveNodes(kwokAddress)
	if err != nil {
		return err
	}

	err = c.processes.start("etcd",
		"--name=etcd",
		"--data-dir="+filepath.Join(c.dir, "etcd"),
		"--listen-client-urls="+etcdURL,
		"--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL,
		"--initial-advertise-peer-urls="+peerURL,
		"--initial-cluster=etcd="+peerURL,
		"--unsafe-no-fsync",       // the data ends with the process
		"--heartbeat-interval=20", // ms; with one member, these only make its election short
		"--election-timeout=100",
		"--log-level=warn",
	)
	if err != nil {
		return err
	}
	api := newAPI(c.server, c.credentials)
	if err := c.wait(ctx, "etcd", func() error { return api.get(ctx, etcdURL+"/health", nil) }); err != nil {
		return err
	}

	audiences := append([]string{c.server}, c.audiences...)
	err = c.processes.start("kube-apiserver",
		"--etcd-servers="+etcdURL,
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none", // any other refuses a loopback address
		"--secure-port="+port(ports[2]),
		"--cert-dir="+c.dir,
		"--tls-cert-file="+c.credentials.certFile,
		"--tls-private-key-file="+c.credentials.keyFile,
		"--token-auth-file="+c.credentials.tokenFile,
		"--authorization-mode=Node,RBAC",
		"--anonymous-auth=true",
		"--allow-privileged=true",
		"--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer="+c.server,
		"--service-account-key-file="+c.credentials.saKeyFile,
		"--service-account-signing-key-file="+c.credentials.saKeyFile,
		"--api-audiences="+strings.Join(audiences, ","),
		"--audit-policy-file="+filepath.Join(c.dir, "audit-policy.yaml"),
		"--audit-log-path="+c.auditLog(),
		"--audit-log-maxsize=0",                        // never rotated: its readers know one path
		"--kubelet-preferred-address-types=InternalIP", // node names resolve nowhere
		fmt.Sprintf("--runtime-config=api/alpha=%[1]t,api/beta=%[1]t", c.allAPIs),
	)
	if err != nil {
		return err
	}
	if err := c.apiServerReady(ctx, api); err != nil {
		return err
	}

	err = c.processes.start("kube-controller-manager",
		"--kubeconfig="+filepath.Join(c.dir, c.credentials.controllers.kubeconfig),
		"--use-service-account-credentials=true", // without it RBAC forbids the controllers everything
		"--service-account-private-key-file="+c.credentials.saKeyFile,
		"--root-ca-file="+c.credentials.certFile,
		"--leader-elect=false",
		"--secure-port=0",
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
	)
	if err != nil {
		return err
	}
	err = c.processes.start("kube-scheduler",
		"--kubeconfig="+filepath.Join(c.dir, c.credentials.scheduler.kubeconfig),
		"--leader-elect=false",
		"--secure-port=0",
		"--kube-api-qps=500", // for clusters of thousands of pods
		"--kube-api-burst=1000",
	)
	if err != nil {
		return err
	}
	err = c.processes.start("kwok",
		"--kubeconfig="+filepath.Join(c.dir, c.credentials.kwok.kubeconfig),
		"--config="+filepath.Join(c.bin, stagesFile),
		"--config="+filepath.Join(c.dir, "kwok.yaml"),
		"--manage-all-nodes=true",
		"--cidr=10.244.0.0/16",
		"--node-ip=127.0.0.1",
		"--node-port="+strconv.Itoa(nodePort),
		"--server-address="+kwokAddress,
		"--node-lease-duration-seconds=40",
	)
	if err != nil {
		return err
	}
	if err := c.wait(ctx, "kwok", func() error { return api.get(ctx, "http://"+kwokAddress+"/healthz", nil) }); err != nil {
		return err
	}
	return c.populate(ctx, api)
}

// prepare empties the folder of what an earlier run or attempt left, and fills it anew.
func (c *cluster) prepare() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == ".controlplane" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(c.dir, entry.Name())); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(c.dir, "logs"), 0o700); err != nil {
		return err
	}
	if c.credentials, err = makeCredentials(c.dir); err != nil {
		return err
	}
	return writeSettings(c.dir)
}

// populate makes what a fresh cluster lacks, and waits until its workers work.
func (c *cluster) populate(ctx context.Context, api *api) error {
	if err := api.post(ctx, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", publicDiscovery); err != nil {
		return fmt.Errorf("opening OIDC discovery: %w", err)
	}
	for i := range c.nodes {
		if err := api.post(ctx, "/api/v1/nodes", fmt.Sprintf(node, i)); err != nil {
			return fmt.Errorf("making node-%d: %w", i, err)
		}
	}
	err := c.wait(ctx, "the default service account", func() error {
		return api.get(ctx, c.server+"/api/v1/namespaces/default/serviceaccounts/default", nil)
	})
	if err != nil {
		return err
	}
	return c.wait(ctx, "the nodes", func() error {
		var nodes struct {
			Items []struct {
				Metadata struct{ Name string }
				Spec     struct{ Taints []struct{ Key string } }
				Status   struct {
					Conditions []struct{ Type, Status string }
				}
			}
		}
		if err := api.get(ctx, c.server+"/api/v1/nodes", &nodes); err != nil {
			return err
		}
		for _, n := range nodes.Items {
			isReady := false
			for _, condition := range n.Status.Conditions {
				isReady = isReady || condition.Type == "Ready" && condition.Status == "True"
			}
			// A new node is tainted until a controller has seen it ready.
			if !isReady || len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s is not ready", n.Metadata.Name)
			}
		}
		return nil
	})
}

// serve announces the cluster and returns when it should end. At each signal of again it
// kills the API server, starts it anew and announces the cluster once more.
func (c *cluster) serve(ctx context.Context, stdout io.Writer, again <-chan os.Signal) error {
	for {
		err := json.NewEncoder(stdout).Encode(ready{
			Kubeconfig: filepath.Join(c.dir, c.credentials.admin.kubeconfig),
			Kubectl:    filepath.Join(c.bin, "kubectl"),
			Server:     c.server,
			Issuer:     c.server,
			CA:         c.credentials.certFile,
			AuditLog:   c.auditLog(),
			Dir:        c.dir,
		})
		if err != nil {
			return fmt.Errorf("announcing the cluster: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case p := <-c.processes.ended:
			return p.failure()
		case err := <-c.nodeFailed:
			return err
		case <-again:
		}
		if err := c.processes.restart("kube-apiserver"); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, startTimeout)
		err = c.apiServerReady(waiting, newAPI(c.server, c.credentials))
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *cluster) apiServerReady(ctx context.Context, api *api) error {
	return c.wait(ctx, "kube-apiserver", func() error { return api.get(ctx, c.server+"/readyz", nil) })
}

// wait repeats check until it succeeds, a process ends, or the context does.
func (c *cluster) wait(ctx context.Context, what string, check func() error) error {
	for {
		err := check()
		select {
		case p := <-c.processes.ended:
			return fmt.Errorf("starting %s: %w", what, p.failure())
		default:
		}
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("starting %s: not ready after %s: %w; the logs are in %s", what, startTimeout, err, filepath.Join(c.dir, "logs"))
			}
			return errInterrupted
		}
	}
}

func (c *cluster) auditLog() string { return filepath.Join(c.dir, "audit.log") }

// freePorts returns addresses that were free a moment ago. The components cannot be given
// an open listener, so somebody else may come first: that is errAddressInUse later.
func freePorts(n int) ([]string, error) {
	var addresses []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		// Held until all are found, so that they differ.
		defer listener.Close()
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses, nil
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
