package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"countersign/e2e/rig"
)

var profileTo = flag.String("profile", "", "folder for a CPU profile of the server under the load of BenchmarkAllocations")

// benched is a server under load, without a proxy in between and with a policy that
// allows everything: what anything else costs depends on what else was written.
type benched struct {
	testing.TB
	ctx       context.Context
	namespace string
	server    *rig.Server
}

// newBenched starts the server of a binary.
func newBenched(b *testing.B, binary string, env ...string) *benched {
	b.Helper()
	s := &benched{TB: b, ctx: b.Context()}
	dir := b.TempDir()
	err := rig.WriteFiles(dir, map[string]string{"policy/policy.yaml": `
apiVersion: countersign/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  guardsOff: ["guard:loop"] # the same call again and again is what is measured
  rules:
  - {name: all, effect: allow}
`})
	if err != nil {
		b.Fatal(err)
	}
	if s.namespace, err = newNamespace(s.ctx); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { leave(s.namespace) })
	if s.server, err = newServer(dir, world.cluster.Kubeconfig); err != nil {
		b.Fatal(err)
	}
	s.server.Binary, s.server.Env = binary, env
	if err := s.server.Start(s.ctx); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.server.Stop() })
	return s
}

// way is one way of asking: straight, or through the server. One that asks for a
// change is told how many asked before it, so that each request changes something.
type way func(n int) (answer []byte, err error)

// governed is a call of a tool by an agent with a session and a connection of its own.
func (s *benched) governed(tool string, args func(n int) string, want string) way {
	s.Helper()
	agent := &rig.Agent{URL: s.server.URL, Token: world.token, Client: &http.Client{Transport: &http.Transport{}}}
	s.Cleanup(agent.Client.CloseIdleConnections)
	if err := agent.Connect(s.ctx); err != nil {
		s.Fatal(err)
	}
	return func(n int) ([]byte, error) {
		body := fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, n, tool, args(n))
		_, answer, err := agent.Post(s.ctx, body)
		return answer, expect(answer, err, want)
	}
}

// straight is a request to the API server by a client with a connection of its own:
// client-go with the kubeconfig that the server has, over HTTP/2, as kubectl is, or
// over another protocol. Both ways are measured to the last byte of the answer, and
// who reads it is on neither side.
func (s *benched) straight(method, path string, header http.Header, body func(n int) string, want string, protocols ...string) way {
	s.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", world.cluster.Kubeconfig)
	if err != nil {
		s.Fatal(err)
	}
	config.NextProtos = protocols
	config.Dial = (&net.Dialer{}).DialContext // client-go shares connections among clients without one
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(client.CloseIdleConnections)
	return func(n int) ([]byte, error) {
		req, err := http.NewRequestWithContext(s.ctx, method, world.cluster.Server+path, strings.NewReader(body(n)))
		if err != nil {
			return nil, err
		}
		req.Header = header.Clone()
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		return answer, expect(answer, err, want)
	}
}

func expect(answer []byte, err error, want string) error {
	if err == nil && !strings.Contains(string(answer), want) {
		err = fmt.Errorf("the answer lacks %q: %.1000s", want, answer)
	}
	return err
}

func nothing(int) string { return "" }

// The three kinds of calls, each both ways.

func (s *benched) read() way {
	return s.governed("get_resource", func(int) string {
		return fmt.Sprintf(`{"kind":"deployment","namespace":%q,"name":"web"}`, s.namespace)
	}, "registry.example/web:1.0")
}

func (s *benched) straightRead(protocols ...string) way {
	return s.straight(http.MethodGet, "/apis/apps/v1/namespaces/"+s.namespace+"/deployments/web",
		http.Header{"Accept": {"application/json"}}, nothing, "registry.example/web:1.0", protocols...)
}

// Many values, because those of one client need not follow upon each other.
func (s *benched) write(deployment string) way {
	return s.governed("scale_deployment", func(n int) string {
		return fmt.Sprintf(`{"namespace":%q,"name":%q,"replicas":%d}`, s.namespace, deployment, 1000+n%1000)
	}, `"status":"succeeded"`)
}

func (s *benched) straightWrite(deployment string) way {
	return s.straight(http.MethodPatch, "/apis/apps/v1/namespaces/"+s.namespace+"/deployments/"+deployment+"/scale",
		http.Header{"Accept": {"application/json"}, "Content-Type": {"application/merge-patch+json"}},
		func(n int) string { return fmt.Sprintf(`{"spec":{"replicas":%d}}`, 2000+n%1000) }, `"kind":"Scale"`)
}

// idle makes a Deployment that can be scaled without a pod coming or going: it was
// paused before it had any. What the API server and etcd do for a change is the same.
func (s *benched) idle(name string) {
	s.Helper()
	_, err := world.cluster.Run(s.ctx, fmt.Sprintf(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: %[1]s, namespace: %[2]s}, spec: {replicas: 2, paused: true,
		selector: {matchLabels: {app: %[1]s}}, template: {metadata: {labels: {app: %[1]s}},
		spec: {containers: [{name: web, image: "registry.example/web:1.0"}]}}}}`, name, s.namespace), "apply", "-f", "-")
	if err != nil {
		s.Fatal(err)
	}
}

// idleOf is the Deployment that one client changes. Changes of one object at the same
// time would measure how the API server makes them wait for each other.
func idleOf(client int) string { return fmt.Sprintf("idle-%d", client) }

// list asks for the pods of the namespace, of which an answer has the first 100.
func (s *benched) list(want string) way {
	return s.governed("list_resources", func(int) string { return fmt.Sprintf(`{"kind":"pods","namespace":%q}`, s.namespace) }, want)
}

// BenchmarkRead and the others alternate rounds of calls with rounds of the same
// requests sent straight to the API server, so that both meet the same machine. On one
// that others use heavily the ratios are worse than on a quiet one all the same.
func BenchmarkRead(b *testing.B) {
	for _, clients := range []int{1, 8} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := newBenched(b, world.binary)
			ways := []func(int) way{func(int) way { return s.read() }, func(int) way { return s.straightRead() }}
			if clients == 1 {
				ways = append(ways, func(int) way { return s.straightRead("http/1.1") })
			}
			alternate(b, s, clients, ways...)
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, clients := range []int{1, 8} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := newBenched(b, world.binary)
			for client := range clients {
				s.idle(idleOf(client))
			}
			alternate(b, s, clients, func(client int) way { return s.write(idleOf(client)) }, func(client int) way { return s.straightWrite(idleOf(client)) })
		})
	}
}

// BenchmarkListOfManyPods lists 5,000 pods, of which an answer has the first 100.
func BenchmarkListOfManyPods(b *testing.B) {
	s := newBenched(b, world.binary)
	if err := fillNamespace(s.ctx, s.namespace, manyPods); err != nil {
		b.Fatal(err)
	}
	call := func(int) way { return s.list("100 of 500") }
	straight := func(protocols ...string) way {
		return s.straight(http.MethodGet, "/api/v1/namespaces/"+s.namespace+"/pods?limit=100&includeObject=None",
			http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}}, nothing, `"kind":"Table"`, protocols...)
	}
	answer, err := call(0)(0)
	if err != nil {
		b.Fatal(err)
	}
	alternate(b, s, 1, call, func(int) way { return straight() }, func(int) way { return straight("http/1.1") })
	b.ReportMetric(float64(len(answer))/1024, "answer-KiB")
}

// round is how many calls each client makes in a round, one way.
const round = 10

// alternate measures calls through the server against the same straight, and, with
// http1, against those over HTTP/1.1. An iteration is one round of each. Every round
// has its calls from one counter, so that no client waits long for the others.
func alternate(b *testing.B, s *benched, clients int, ways ...func(client int) way) {
	b.Helper()
	names := []string{"governed", "straight", "straight-http1"}[:len(ways)]
	sides := make([]side, len(ways))
	for i, open := range ways {
		for client := range clients {
			sides[i].ways = append(sides[i].ways, open(client))
		}
	}
	// What a server that has just started, and an API server that has just taken many
	// objects, do beside is not what is measured.
	for range 30 {
		for i := range sides {
			sides[i].run(b, clients*round)
		}
	}
	for i := range sides {
		sides[i].took, sides[i].busy = nil, 0
	}
	cpu := rig.CPU(s.server.PID())
	for b.Loop() {
		for i := range sides {
			sides[i].run(b, clients*round)
		}
	}
	cpu = rig.CPU(s.server.PID()) - cpu
	b.ReportMetric(0, "ns/op") // a round, which tells nothing
	for i := range sides {
		sides[i].report(b, names[i])
	}
	governed := &sides[0]
	b.ReportMetric(float64(cpu.Microseconds())/float64(len(governed.took)), "cpu-us/call")
	_, rss := rig.Memory(s.server.PID())
	b.ReportMetric(rss, "RSS-MB")
	for i, one := range sides[1:] {
		suffix := strings.TrimPrefix(names[i+1], "straight")
		b.ReportMetric(governed.percentile(50)/one.percentile(50), "x-p50"+suffix)
		b.ReportMetric(governed.perSecond()/one.perSecond(), "x-calls/s"+suffix)
	}
	b.ReportMetric(s.requests(governed.ways[0]), "requests/call")
}

// side is what was measured of one way.
type side struct {
	ways []way // one for each client
	sent int
	took []time.Duration // sorted once reported
	busy time.Duration
}

// run makes n calls, by all clients together.
func (s *side) run(b *testing.B, n int) {
	b.Helper()
	took := make([]time.Duration, n)
	var next atomic.Int64
	var group sync.WaitGroup
	start := time.Now()
	for _, send := range s.ways {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				start := time.Now()
				if _, err := send(s.sent + i); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	group.Wait()
	s.busy += time.Since(start)
	if b.Failed() {
		b.FailNow()
	}
	s.sent += n
	s.took = append(s.took, took...)
}

func (s *side) report(b *testing.B, name string) {
	b.Helper()
	slices.Sort(s.took)
	for _, p := range []int{50, 95, 99} {
		b.ReportMetric(s.percentile(p), fmt.Sprintf("%s-p%d-us", name, p))
	}
	b.ReportMetric(s.perSecond(), name+"-calls/s")
}

// percentile is in µs, of sorted times.
func (s *side) percentile(p int) float64 {
	return float64(s.took[len(s.took)*p/100].Nanoseconds()) / 1000
}

func (s *side) perSecond() float64 { return float64(len(s.took)) / s.busy.Seconds() }

// requests is how many requests reach the API server for one call, as its own audit
// log tells.
func (s *benched) requests(call way) float64 {
	s.Helper()
	const calls = 100
	before := s.seen()
	for i := range calls {
		if _, err := call(i); err != nil {
			s.Fatal(err)
		}
	}
	n := s.seen()
	for last := before; n != last; n = s.seen() { // the log is written a little later
		last = n
		time.Sleep(200 * time.Millisecond)
	}
	return float64(n-before) / calls
}

// seen counts the requests of every server of ours in the API server's audit log.
func (s *benched) seen() (n int) {
	s.Helper()
	f, err := os.Open(world.cluster.AuditLog)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"userAgent":"countersign/`) {
			n++
		}
	}
	return n
}

// BenchmarkManyCalls is 100,000 calls of eight clients in 500 iterations, one in
// twenty a change, for what the server has in memory at a tenth of them, half way and
// at the end: anon is what it has allocated, RSS also what it has mapped of its store.
func BenchmarkManyCalls(b *testing.B) {
	const clients, each = 8, 200
	s := newBenched(b, world.binary)
	s.idle("idle")
	var calls side
	for range clients {
		read, write := s.read(), s.write("idle")
		calls.ways = append(calls.ways, func(n int) ([]byte, error) {
			if n%20 == 0 {
				return write(n / 20)
			}
			return read(n)
		})
	}
	var anon, rss []float64
	cpu := rig.CPU(s.server.PID())
	for b.Loop() {
		calls.run(b, each)
		a, r := rig.Memory(s.server.PID())
		anon, rss = append(anon, a), append(rss, r)
	}
	cpu = rig.CPU(s.server.PID()) - cpu
	b.ReportMetric(float64(cpu.Microseconds())/float64(len(calls.took)), "cpu-us/call")
	for name, at := range map[string]int{"start": len(rss) / 10, "middle": len(rss) / 2, "end": len(rss) - 1} {
		b.ReportMetric(anon[at], "anon-"+name+"-MB")
		b.ReportMetric(rss[at], "RSS-"+name+"-MB")
	}
	b.ReportMetric(rss[len(rss)-1]/rss[len(rss)/2], "x-RSS")
	tenth := len(calls.took) / 10
	for name, part := range map[string][]time.Duration{"first": calls.took[:tenth], "last": calls.took[len(calls.took)-tenth:]} {
		part := side{took: slices.Clone(part)}
		slices.Sort(part.took)
		b.ReportMetric(part.percentile(50), name+"-tenth-p50-us")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(len(calls.took)), "calls")
	calls.report(b, "governed")
}

// BenchmarkAllocations counts what the server allocates for a call, with one that was
// built to tell it. With -profile it also writes a CPU profile of the calls.
func BenchmarkAllocations(b *testing.B) {
	dir := b.TempDir()
	binary, err := rig.BuildServer(b.Context(), dir, "-tags", "profile")
	if err != nil {
		b.Fatal(err)
	}
	address, err := rig.FreeAddress()
	if err != nil {
		b.Fatal(err)
	}
	s := newBenched(b, binary, "COUNTERSIGN_PROFILE="+address)
	const clients = 8
	for client := range clients {
		s.idle(idleOf(client))
	}
	if err := fillNamespace(s.ctx, s.namespace, 101); err != nil { // the answer has 100, however many there are
		b.Fatal(err)
	}
	profiles := "http://" + address + "/debug/pprof/"
	read := func(int) way { return s.read() }
	write := func(client int) way { return s.write(idleOf(client)) }
	for _, row := range []struct {
		name    string
		clients int
		open    func(client int) way
	}{
		{"read", 1, read},
		{"write", 1, write},
		{"list", 1, func(int) way { return s.list("100 of 10") }},
		{"read_of_8", clients, read},
		{"write_of_8", clients, write},
	} {
		b.Run(row.name, func(b *testing.B) {
			var made side
			for client := range row.clients {
				made.ways = append(made.ways, row.open(client))
			}
			made.run(b, 500)
			calls := len(made.took)
			objects, bytes := allocated(b, profiles)
			for b.Loop() {
				made.run(b, row.clients)
			}
			objectsAfter, bytesAfter := allocated(b, profiles)
			b.ReportMetric(0, "ns/op")
			calls = len(made.took) - calls
			b.ReportMetric((objectsAfter-objects)/float64(calls), "server-allocs/call")
			b.ReportMetric((bytesAfter-bytes)/1024/float64(calls), "server-KiB/call")
			if *profileTo != "" {
				profile(b, profiles, filepath.Join(*profileTo, row.name+".pprof"), &made)
			}
		})
	}
}

var allocation = regexp.MustCompile(`(?m)^# (Mallocs|TotalAlloc) = (\d+)$`)

// allocated is what a server has allocated since it started.
func allocated(b *testing.B, profiles string) (objects, bytes float64) {
	b.Helper()
	text, err := fetch(b.Context(), profiles+"allocs?debug=1")
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range allocation.FindAllSubmatch(text, -1) {
		n, _ := strconv.ParseFloat(string(m[2]), 64)
		if string(m[1]) == "Mallocs" {
			objects = n
		} else {
			bytes = n
		}
	}
	if objects == 0 || bytes == 0 {
		b.Fatalf("the server does not tell what it allocated: %.300s", text)
	}
	return objects, bytes
}

// profile writes ten seconds of the calls.
func profile(b *testing.B, profiles, file string, calls *side) {
	b.Helper()
	done := make(chan error, 1)
	go func() {
		text, err := fetch(b.Context(), profiles+"profile?seconds=10")
		if err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				b.Error(err)
			}
			return
		default:
			calls.run(b, 10)
		}
	}
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: HTTP %d: %.300s", url, resp.StatusCode, text)
	}
	return text, err
}

// kubernetesVersion is that of the control plane.
func kubernetesVersion(ctx context.Context) (string, error) {
	text, err := world.cluster.Run(ctx, "", "get", "--raw", "/version")
	if err != nil {
		return "", err
	}
	var version struct{ GitVersion string }
	err = json.Unmarshal([]byte(text), &version)
	return version.GitVersion, err
}
