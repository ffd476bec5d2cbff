// Command benchtable makes docs/benchmarks.md of what benchmarks print. It copies
// them from stdin to stdout, and writes the file that its argument names once they
// have all ended well.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -bench ... | benchtable FILE")
		os.Exit(2)
	}
	if err := run(os.Stdin, os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, file string) error {
	load := loadAverage() // before anything is measured
	r, err := read(in, out)
	if err != nil {
		return err
	}
	text := page(r, where(r, load))
	if _, err := fmt.Fprint(out, "\n", text); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644) // a page of the documentation
}

// results are the metrics of each benchmark, by its name and their unit, and what the
// lines before them say of where they were made, such as cpu.
type results struct {
	metrics map[string]map[string]float64
	about   map[string]string
}

var (
	// aboutLine and resultLine are of the Go benchmark data format
	// (golang.org/design/14313-benchmark-format).
	aboutLine  = regexp.MustCompile(`^([a-z]+): (.+)$`)
	resultLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.+)$`)
	failedLine = regexp.MustCompile(`^(--- )?FAIL`)
)

func read(in io.Reader, out io.Writer) (*results, error) {
	r := &results{metrics: map[string]map[string]float64{}, about: map[string]string{}}
	failed := false
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if _, err := fmt.Fprintln(out, line); err != nil {
			return nil, err
		}
		failed = failed || failedLine.MatchString(line)
		if m := aboutLine.FindStringSubmatch(line); m != nil {
			r.about[m[1]] = m[2]
		}
		m := resultLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		metrics := map[string]float64{}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			n, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("reading %q: %w", line, err)
			}
			metrics[fields[i+1]] = n
		}
		r.metrics[m[1]] = metrics
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if failed {
		return nil, errors.New("a benchmark failed: nothing is written")
	}
	return r, nil
}

// of is a metric of a benchmark; ok is false where there is none.
func (r *results) of(benchmark, unit string) (value float64, ok bool) {
	value, ok = r.metrics[benchmark][unit]
	return value, ok
}

// show writes a metric as the format says, in units of this many of its own.
func (r *results) show(benchmark, unit, format string, per float64) string {
	v, ok := r.of(benchmark, unit)
	if !ok {
		return "–"
	}
	return fmt.Sprintf(format, v/per)
}

// goal is one measure and what it must reach.
type goal struct {
	what, text      string // the measure, and the goal in words
	benchmark, unit string
	limit           float64 // in unit
	atLeast         bool    // and not at most
	format          string  // of the value,
	per             float64 // in units of this many of the metric's
}

var goals = []goal{
	{"governed read, 1 client: p50 against the same request sent straight", "≤ 1.6x", "Read/clients=1", "x-p50", 1.6, false, "%.2fx", 1},
	{"governed read, 8 clients: calls a second against the same", "≥ 0.5x", "Read/clients=8", "x-calls/s", 0.5, true, "%.2fx", 1},
	{"governed allowed write (scale), 1 client: p50 against the same PATCH sent straight", "≤ 2x", "Write/clients=1", "x-p50", 2, false, "%.2fx", 1},
	{"list over 5,000 pods: size of the answer", "≤ 32 KiB", "ListOfManyPods", "answer-KiB", 32, false, "%.1f KiB", 1},
	{"resident memory after 100,000 calls, or as many as are told below", "≤ 150 MiB", "ManyCalls", "RSS-end-MB", 150, false, "%.0f MiB", 1},
	{"resident memory, from half of those calls to all of them", "flat: ≤ 1.1x", "ManyCalls", "x-RSS", 1.1, false, "%.2fx", 1},
	{"audit append, 16 writers: records a second against a loop of write and fsync", "≥ 2.5x", "Append/16_writers", "x-fsync", 2.5, true, "%.1fx", 1},
	{"export of 1,000,000 records", "≥ 100,000/s", "Million/export", "records/s", 100_000, true, "%.0f/s", 1},
	{"verify 1,000,000 records, with the running server", "≤ 10 s", "Million/verify", "ns/op", 10e9, false, "%.1f s", 1e9},
	{"verify an export of 1,000,000 records, offline", "≤ 10 s", "Million/verify-export", "ns/op", 10e9, false, "%.1f s", 1e9},
	{"start to ready with 1,000,000 records in the log", "≤ 1 s", "Million/ready", "ns/op", 1e9, false, "%.2f s", 1e9},
	{"policy decision, 500 rules, each with a CEL condition, 10 evaluated", "≤ 50 µs", "Decide500/conditions=500/evaluated=10", "ns/op", 50e3, false, "%.1f µs", 1e3},
	{"policy decision, 500 rules, 250 with a CEL condition, 50 evaluated", "≤ 50 µs", "Decide500/conditions=250/evaluated=50", "ns/op", 50e3, false, "%.1f µs", 1e3},
}

// met says whether a goal was reached, and else by how much it was missed.
func (g goal) met(r *results) string {
	v, ok := r.of(g.benchmark, g.unit)
	if !ok {
		return "not measured"
	}
	by := v/g.limit - 1
	if g.atLeast {
		by = g.limit/v - 1
	}
	if by <= 0 {
		return "yes"
	}
	return fmt.Sprintf("**no**, by %.0f %%", by*100)
}

// calls are the rows of the table of calls. What none of a benchmark's own metrics
// tells, allocations, is counted by another.
var calls = []struct{ what, benchmark, allocations string }{
	{"get_resource, a Deployment, 1 client", "Read/clients=1", "Allocations/read"},
	{"get_resource, a Deployment, 8 clients", "Read/clients=8", "Allocations/read_of_8"},
	{"scale_deployment, 1 client", "Write/clients=1", "Allocations/write"},
	{"scale_deployment, 8 clients, each its own Deployment", "Write/clients=8", "Allocations/write_of_8"},
	{"list_resources, 5,000 pods, 1 client", "ListOfManyPods", "Allocations/list"},
}

// parts are the rows of the table of what lies on a call's way.
var parts = []struct{ what, benchmark string }{
	{"guard: host, token, size, limits, session", "Guard"},
	{"policy decision, 500 rules, each with a CEL condition, 10 evaluated", "Decide500/conditions=500/evaluated=10"},
	{"plan digest, a scale", "PlanDigest/scale"},
	{"plan digest, applying a Deployment", "PlanDigest/apply"},
	{"differences between a Deployment and its dry run", "Diff"},
	{"preview digest of them", "PreviewDigest/changed"},
	{"masking them", "MaskDiff"},
	{"writing them for an approver", "Question/text"},
	{"audit append, 1 writer", "Append/1_writers"},
	{"audit append, 16 writers", "Append/16_writers"},
	{"masking a Deployment", "MaskObject/deployment"},
	{"masking a text of 32 KiB, a table", "MaskTextTable32KiB"},
	{"masking a text of 32 KiB, a log", "MaskTextLog32KiB"},
	{"answer: a Deployment as YAML", "Object/yaml"},
	{"answer: a Deployment, three fields", "Object/fields"},
	{"answer: a table of 500 pods", "Table"},
	{"answer: three fields of 500 pods", "ListOfFields"},
}

// where says on which machine, and with what, the numbers were made. It is apart from
// page, which says the same of the same numbers anywhere.
func where(r *results, load string) string {
	return fmt.Sprintf("%s, Kubernetes %s, %s %s/%s, %s. Load average before: %s.",
		machine(r), known(r.about["kubernetes"]), runtime.Version(), runtime.GOOS, runtime.GOARCH, time.Now().UTC().Format(time.DateOnly), load)
}

func page(r *results, where string) string {
	var p strings.Builder
	fmt.Fprintf(&p, `# Benchmarks

Made by %s; do not edit. Calls of tools over MCP's HTTP to the real server, in turns with the same
requests sent straight to the API server, so that both meet the same machine. Where it has other things to
do (a load average before of more than 1), ratios are worse too, because a governed call needs more of it.
Load generator, server, API server and etcd share it. etcd does without fsync there; the server's store
does not, which is to its disadvantage in a write.

%s

`, "`make bench`", where)

	p.WriteString("## Goals\n\n| measure | goal | measured | met |\n|---|---|---|---|\n")
	for _, g := range goals {
		fmt.Fprintf(&p, "| %s | %s | %s | %s |\n", g.what, g.text, r.show(g.benchmark, g.unit, g.format, g.per), g.met(r))
	}

	p.WriteString(`
## Calls

p50 / p95 / p99 in ms. Straight is over HTTP/2, as kubectl is; the server reads over HTTP/1.1, and what
that alone makes of the ratio stands beside it. CPU, allocations and resident memory, at the end, are those of
the server's process; a server that was built to tell it counted the allocations.

| call | governed | straight | p50, ratio (to HTTP/1.1) | calls/s, governed / straight (ratio) | requests to the API server | CPU | allocations | resident |
|---|---|---|---|---|---|---|---|---|
`)
	times := func(benchmark, side string) string {
		var all []string
		for _, q := range []string{"50", "95", "99"} {
			all = append(all, r.show(benchmark, side+"-p"+q+"-us", "%.2f", 1000))
		}
		return strings.Join(all, " / ")
	}
	for _, c := range calls {
		ratio := r.show(c.benchmark, "x-p50", "%.2fx", 1)
		if _, ok := r.of(c.benchmark, "x-p50-http1"); ok {
			ratio += r.show(c.benchmark, "x-p50-http1", " (%.2fx)", 1)
		}
		fmt.Fprintf(&p, "| %s | %s | %s | %s | %s / %s (%s) | %s | %s | %s, %s | %s |\n", c.what, times(c.benchmark, "governed"), times(c.benchmark, "straight"), ratio,
			r.show(c.benchmark, "governed-calls/s", "%.0f", 1), r.show(c.benchmark, "straight-calls/s", "%.0f", 1), r.show(c.benchmark, "x-calls/s", "%.2fx", 1),
			r.show(c.benchmark, "requests/call", "%.2f", 1), r.show(c.benchmark, "cpu-us/call", "%.2f ms", 1000),
			r.show(c.allocations, "server-allocs/call", "%.0f", 1), r.show(c.allocations, "server-KiB/call", "%.0f KiB", 1),
			r.show(c.benchmark, "RSS-MB", "%.0f MiB", 1))
	}
	fmt.Fprintf(&p, `
200 clients, each asking as fast as it may, at the limit of 200 calls a second for all of them: %s calls/s served,
p50 %s and p99 %s, %s resident. A question to people while 10,000 others wait: in Slack %s after
the call, and its outcome with the agent %s after the click, both without the API server's time.
`, r.show("ClientsAtTheLimit", "calls/s", "%.0f", 1), r.show("ClientsAtTheLimit", "p50-ms", "%.0f ms", 1), r.show("ClientsAtTheLimit", "p99-ms", "%.0f ms", 1), r.show("ClientsAtTheLimit", "RSS-end-MB", "%.0f MiB", 1),
		r.show("QuestionAmongMany", "asking-p50-ms", "%.1f ms", 1), r.show("QuestionAmongMany", "answering-p50-ms", "%.1f ms", 1))

	p.WriteString("\n## Parts of a call\n\n| part | time | allocations |\n|---|---|---|\n")
	for _, part := range parts {
		fmt.Fprintf(&p, "| %s | %s | %s, %s |\n", part.what, r.show(part.benchmark, "ns/op", "%.1f µs", 1e3),
			r.show(part.benchmark, "allocs/op", "%.0f", 1), r.show(part.benchmark, "B/op", "%.1f KiB", 1024))
	}

	memory := func(kind string) string {
		return fmt.Sprintf("%s / %s / %s MiB", r.show("ManyCalls", kind+"-start-MB", "%.0f", 1), r.show("ManyCalls", kind+"-middle-MB", "%.0f", 1), r.show("ManyCalls", kind+"-end-MB", "%.0f", 1))
	}
	fmt.Fprintf(&p, `
## Memory over %s calls

8 clients, one call in twenty a change; after a tenth of the calls / half of them / all. Resident is with the
pages of the store that were written or read in the last ten seconds.

| | |
|---|---|
| allocated | %s |
| resident | %s |
| p50 of a call, first and last tenth | %s and %s |
| p50 / p95 / p99 of all, in ms | %s, %s calls/s |
| CPU a call | %s |

## A log of 1,000,000 records

| | | |
|---|---|---|
`, r.show("ManyCalls", "calls", "%.0f", 1), memory("anon"), memory("RSS"),
		r.show("ManyCalls", "first-tenth-p50-us", "%.2f ms", 1000), r.show("ManyCalls", "last-tenth-p50-us", "%.2f ms", 1000),
		times("ManyCalls", "governed"), r.show("ManyCalls", "governed-calls/s", "%.0f", 1), r.show("ManyCalls", "cpu-us/call", "%.2f ms", 1000))
	for _, command := range []string{"export", "verify", "verify-export"} {
		fmt.Fprintf(&p, "| audit %s | %s | %s at most |\n", command, r.show("Million/"+command, "records/s", "%.0f records/s", 1), r.show("Million/"+command, "RSS-MB", "%.0f MiB", 1))
	}
	for _, row := range [][2]string{{"a session", "session"}, {"an operation", "operation"}, {"a name and its namespace", "name_and_namespace"}, {"a resource three records are about", "rare_resource"}, {"a text", "text"}} {
		fmt.Fprintf(&p, "| search for %s | %s | |\n", row[0], r.show("Search/"+row[1], "ns/op", "%.2f ms", 1e6))
	}
	return p.String()
}

func machine(r *results) string {
	text := fmt.Sprintf("%s, %d cores", known(r.about["cpu"]), runtime.NumCPU())
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		if fields := strings.Fields(string(info)); len(fields) > 1 {
			kb, _ := strconv.ParseFloat(fields[1], 64)
			text += fmt.Sprintf(", %.0f GiB", kb/(1<<20))
		}
	}
	return text
}

// loadAverage is of the last minute; on two quiet cores it is far below 1.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(text), " ")
	return known(one)
}

func known(text string) string {
	if text == "" {
		return "unknown"
	}
	return text
}
