package storage

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"countersign/audit/logtest"
)

// The program that docs/audit.md has for whoever trusts nothing of ours accepts an
// export, and nothing else.
func TestProgramInDocs(t *testing.T) {
	for _, program := range []string{"python3", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is missing", program)
		}
	}
	_, section, _ := strings.Cut(string(read("../docs/audit.md")), "\n## Verifying without Countersign\n")
	_, text, _ := strings.Cut(section, "\n```python\n")
	program, _, found := strings.Cut(text, "\n```\n")
	if !found {
		t.Fatal("docs/audit.md has no program")
	}
	folder := t.TempDir()
	s := unsynced(t, filepath.Join(folder, "store.db"))
	defer s.Close()
	check := filepath.Join(folder, "check.py")
	write(t, check, []byte(program), 0o600)
	run := func(export, signed, public []byte) (string, error) {
		var args []string
		for name, data := range map[string][]byte{"1 audit.jsonl": export, "2 checkpoint": signed, "3 audit.pub": public} {
			path := filepath.Join(folder, name)
			write(t, path, data, 0o600)
			args = append(args, path)
		}
		slices.Sort(args)
		out, err := exec.Command("python3", append([]string{check}, args...)...).CombinedOutput()
		return string(out), err
	}
	public := read(filepath.Join(folder, "audit.pub"))
	maker := logtest.New(7)
	for _, size := range []int{0, 1, 37, 300} {
		fill(t, s, maker, size, 30)
		if out, err := run(logtest.Export(leaves(t, s)), checkpoint(t, s), public); err != nil || !strings.Contains(out, "records of log.example.com are what was signed") {
			t.Errorf("%d records: %v, %s", size, err, out)
		}
	}

	signed, lines := checkpoint(t, s), leaves(t, s)
	export := logtest.Export(lines)
	edited := bytes.Clone(export)
	edited[len(edited)/2] ^= 1
	swapped := slices.Clone(lines)
	swapped[7], swapped[8] = swapped[8], swapped[7]
	forged := bytes.Replace(signed, []byte("\n300\n"), []byte("\n299\n"), 1)
	other := logtest.NewLog(9)
	for name, row := range map[string][3][]byte{
		"edited":           {edited, signed, public},
		"a line removed":   {logtest.Export(slices.Delete(slices.Clone(lines), 9, 10)), signed, public},
		"lines swapped":    {logtest.Export(swapped), signed, public},
		"cut in a line":    {export[:len(export)-9], signed, public},
		"cut after a line": {logtest.Export(lines[:299]), signed, public},
		"another size":     {logtest.Export(lines[:299]), forged, public},
		"another key":      {export, signed, []byte(other.Public + "\n")},
		"another log":      {nil, other.Checkpoint(), public},
	} {
		if out, err := run(row[0], row[1], row[2]); err == nil {
			t.Errorf("%s is accepted: %s", name, out)
		}
	}
}
