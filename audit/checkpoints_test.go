package audit

import (
	"slices"
	"testing"
)

// Checkpoints come out whole, whatever stands between them.
func TestCheckpointsApart(t *testing.T) {
	const one, two = "log\n1\nroot=\n\n— log sig1=\n", "log\n2\nroot=\n\n— log sig2=\n— witness sig3=\n"
	for _, row := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{"\n\n", nil},
		{one, []string{one}},
		{one + two, []string{one, two}},
		{one + "\n" + two + "\n", []string{one, two}},
		{"\n\n\n" + one + "\n\n\n" + two, []string{one, two}},
		{"log\n12\n\n" + one, []string{"log\n12\n", one}},                             // cut in its text
		{"log\n1\nroot=\n\n\n" + one, []string{"log\n1\nroot=\n", one}},               // before its signatures
		{"log\n1\nroot=\n\n— lo\n\n" + one, []string{"log\n1\nroot=\n\n— lo\n", one}}, // within them
		{"— log sig1=\n\n" + one, []string{"— log sig1=\n", one}},                     // what its text stood before is gone
		{one + "hello\n\n" + two, []string{one, "hello\n", two}},
		{one + "log", []string{one, "log"}},
	} {
		var got []string
		for _, signed := range Checkpoints([]byte(row.text)) {
			got = append(got, string(signed))
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%q\n got %q\nwant %q", row.text, got, row.want)
		}
	}
}
