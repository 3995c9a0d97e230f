"""seqjax: recurrent sequence learning in JAX, as pure functions and Flax Linen modules.

Axes, wherever a shape stands in a comment:

    B batch   T time   F features   H hidden units   O outputs   V vocabulary   R replicas (seeds)   N batches

The rooms, each importing only from those above it:

    types         what a model reads and returns
    task          the types that everybody shares: Sequences, Batch, Mean, Task, TrainState
    options       names of options: a mistyped one is refused with the nearest one
    masks         which steps are real: lengths and masks, their checks, and what they mean along time
    losses        masked losses and metrics, each a Mean that is not divided yet
    activations   activation functions by name
    initializers  how weights begin: schemes by name, biases that set how long a gate remembers
    row_sharding  sharding of the rows of a batch over the devices of the mesh in effect
    linear_map    linear maps with a transpose of their own: fast reverse mode beside forward mode
    ops           what the next two share: steps, chunks of a backward pass
    lstm_ops      the LSTM's recurrence as an array function: one signature, several ways to compute it
    gru_ops       the same of the GRU
    cells         one time step: LSTMCell, GRUCell, SimpleRNNCell and their variants
    linear        cells whose steps can be taken all at once: MinGRUCell, MinLSTMCell, LRUCell, RGLRUCell
    recurrence    how a cell is carried over time: nn.scan, lstm_ops, gru_ops, associative_scan, segments to save memory
    layers        over time: RNN, Bidirectional, Stack, Stateful, TimeDistributed (nn.vmap)
    models        compositions: sequence to vector, sequence to sequence, and a constructor for the usual ones
    attention     a weighted mean of a source's steps: additive (Bahdanau), dot and general (Luong)
    encoder_decoder  a source is read, a target is written: teacher forcing, scheduled sampling, attention
    decode        what a model writes by itself: greedy, by beam search, drawn
    data          ways to feed a task: streams, windows of a long series; epochs in an order of their own
    problem       what is to be learned, before there is a model: how it is drawn, scored, what is known of the best
    tasks/        what is learned, a file a family
    dataset       what a file of data gives a run: how it is fed, scored and split, and what there is to beat
    config        the settings of a model and of its training, of which flags are made
    build         the model that a task asks for and a configuration chooses
    optim         the optimiser that a run asks for
    processes     several processes that compute one run
    streaming     data that stay on the host: batches made there, by grain
    ------        rooms that touch files or print
    report        parameter table, shares with their intervals, pictures
    files         the folder of a run: its lock, its journals, and files that are never left half written
    progress      how far a run is: a bar or lines, the time left, a warning where a run takes days
    parameters    the arrays of a tree by name, saved in one file with checksums and loaded from it
    memory        what a program needs, estimated before it is compiled, and what this machine has
    signals       how a run is asked to stop: SIGTERM, SIGINT
    checkpoint    saves by Orbax, sealed with checksums, verified before use
    trials        results of training until a success criterion is met, and their files
    fit           results of training with early stopping, and their files
    training/     train_step, the one loop, replica groups, sharding, sessions, the driver of seeds and its observers
    verdict       whether a model beats a baseline, by how much, and how sure that is
    readers/      files of people to arrays, through a library made for each format
    baselines/    what is simple and must be beaten, a file a kind of data
    datasets/     kinds of data: arrays to what a run learns from, a file a kind
    cli/          the program: it finds the commands and runs one

The library reads no flags; `experiments/` does, and is what is run.
"""

__version__ = '0.1.0'
