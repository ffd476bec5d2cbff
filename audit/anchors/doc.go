// Package anchors puts the log's checkpoints where the server cannot take them
// back: at a C2SP witness, in immutable ConfigMaps, in a file, and in the
// server's own log. Whoever edits the log later, cuts it or puts an older state
// back would have to change those places too.
//
// It decides when, and keeps one place that fails from holding up the others. It
// signs nothing, and talks to no cluster itself.
package anchors
