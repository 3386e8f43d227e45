/*
 * 16550A UART, as National Semiconductor's data sheet of the PC16550D describes it.
 *
 * Time is left out: a byte that the chardev takes has been sent at once, so THRE and TEMT are clear only while bytes
 * wait in the transmitter's FIFO for the chardev, and the receiver's "character timeout" holds as soon as there are
 * fewer bytes than the trigger level (what is read from a chardev in one go is there in one go).
 *
 * The interrupt output is not gated by OUT2, which on a PC is a matter of the card, not the chip: small kernels leave it
 * clear, and Linux, which sets it, cannot tell.
 */
#include "config.h"

#include "device/devices.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device/device-internal.h"

#define FIFO_SIZE 16

enum {
    REG_DATA = 0, /* receiver buffer, transmitter holding; with DLAB the divisor's low byte */
    REG_IER = 1,  /* with DLAB the divisor's high byte */
    REG_IIR = 2,  /* writes: FIFO control */
    REG_LCR = 3,
    REG_MCR = 4,
    REG_LSR = 5,
    REG_MSR = 6,
    REG_SCR = 7,
};

#define IER_RX 0x01
#define IER_THRE 0x02
#define IER_LINE 0x04
#define IER_MODEM 0x08
#define IER_MASK 0x0f

#define IIR_NONE 0x01
#define IIR_MODEM 0x00
#define IIR_THRE 0x02
#define IIR_RX 0x04
#define IIR_LINE 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO 0xc0

#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_CLEAR_TX 0x04
#define FCR_KEPT 0xc9 /* enable, DMA mode, trigger level */

#define LCR_DLAB 0x80

#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10
#define MCR_MASK 0x1f

#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_BREAK 0x10
#define LSR_THRE 0x20
#define LSR_TEMT 0x40
#define LSR_FIFO_ERROR 0x80

/* The low half tells what changed in the high half since the last read. */
#define MSR_DCTS 0x01
#define MSR_DDSR 0x02
#define MSR_TERI 0x04
#define MSR_DDCD 0x08
#define MSR_DELTAS 0x0f
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80

#define RX_BREAK 0x100 /* beside a byte in the receiver's FIFO */
#define RX_MASK 0x1ff
#define DIVISOR_9600 12

/* What is saved. */
struct serial_regs {
    uint8_t ier, fcr, lcr, mcr, scr;
    uint16_t divisor;
    uint8_t msr_deltas;
    bool overrun;      /* LSR's overrun bit */
    bool thre_pending; /* the transmitter got empty, and nobody has been told */
    uint8_t rx_len, tx_len;
    uint16_t rx[FIFO_SIZE]; /* oldest first */
    uint8_t tx[FIFO_SIZE];
};

static const struct state_field regs_fields[] = {
    STATE_FIELD(struct serial_regs, ier),          STATE_FIELD(struct serial_regs, fcr),
    STATE_FIELD(struct serial_regs, lcr),          STATE_FIELD(struct serial_regs, mcr),
    STATE_FIELD(struct serial_regs, scr),          STATE_FIELD(struct serial_regs, divisor),
    STATE_FIELD(struct serial_regs, msr_deltas),   STATE_FIELD(struct serial_regs, overrun),
    STATE_FIELD(struct serial_regs, thre_pending), STATE_FIELD(struct serial_regs, rx_len),
    STATE_FIELD(struct serial_regs, tx_len),       STATE_ARRAY(struct serial_regs, rx),
    STATE_ARRAY(struct serial_regs, tx),
};

struct serial {
    struct device dev;
    struct device_env env;
    struct chardev *chardev;
    struct serial_regs regs;
    bool input_waits; /* the chardev was told that there is no room */
    bool line;
};

static unsigned int fifo_size(const struct serial_regs *regs)
{
    return regs->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned int rx_trigger(const struct serial_regs *regs)
{
    static const uint8_t levels[] = {1, 4, 8, 14};

    return regs->fcr & FCR_ENABLE ? levels[regs->fcr >> 6] : 1;
}

/* -- interrupts -- */

/* The interrupt of the highest priority, without the FIFO bits. */
static uint8_t interrupt_id(const struct serial_regs *regs)
{
    if ((regs->ier & IER_LINE) && (regs->overrun || (regs->rx_len && (regs->rx[0] & RX_BREAK))))
        return IIR_LINE;
    if ((regs->ier & IER_RX) && regs->rx_len)
        return regs->rx_len >= rx_trigger(regs) ? IIR_RX : IIR_TIMEOUT;
    if ((regs->ier & IER_THRE) && regs->thre_pending)
        return IIR_THRE;
    if ((regs->ier & IER_MODEM) && regs->msr_deltas)
        return IIR_MODEM;
    return IIR_NONE;
}

static void set_line(struct serial *s)
{
    s->line = interrupt_id(&s->regs) != IIR_NONE;
    irq_set(s->env.irq, SERIAL_IRQ, s->line);
}

static void update_line(struct serial *s)
{
    if ((interrupt_id(&s->regs) != IIR_NONE) != s->line)
        set_line(s);
}

/* -- receiver -- */

static void rx_push(struct serial *s, uint16_t c)
{
    struct serial_regs *regs = &s->regs;

    if (regs->rx_len < fifo_size(regs)) {
        regs->rx[regs->rx_len++] = c;
        return;
    }
    /* A full FIFO keeps what it has; the single register of the 8250 does not. */
    regs->overrun = true;
    if (!(regs->fcr & FCR_ENABLE))
        regs->rx[0] = c;
}

/* There is room again: tell who waits for it. */
static void rx_room(struct serial *s)
{
    if (!s->input_waits)
        return;
    s->input_waits = false;
    chardev_accept_input(s->chardev);
}

static uint8_t read_rx(struct serial *s)
{
    struct serial_regs *regs = &s->regs;
    uint8_t v;

    if (!regs->rx_len)
        return 0;
    v = (uint8_t)regs->rx[0];
    regs->rx_len--;
    memmove(regs->rx, regs->rx + 1, regs->rx_len * sizeof(regs->rx[0]));
    if (!regs->rx_len)
        rx_room(s);
    update_line(s);
    return v;
}

static void clear_rx(struct serial *s)
{
    s->regs.rx_len = 0;
    rx_room(s);
}

/* Bytes from the chardev. Main thread. */
static size_t on_input(void *opaque, const uint8_t *data, size_t len)
{
    struct serial *s = opaque;
    size_t n = 0;

    pthread_mutex_lock(&s->dev.lock);
    /* In loopback the receiver's pin is cut off. */
    if (!(s->regs.mcr & MCR_LOOP))
        n = MIN(len, (size_t)(fifo_size(&s->regs) - s->regs.rx_len));
    for (size_t i = 0; i < n; i++)
        rx_push(s, data[i]);
    s->input_waits = n < len;
    update_line(s);
    pthread_mutex_unlock(&s->dev.lock);
    return n;
}

static void on_break(void *opaque)
{
    struct serial *s = opaque;

    pthread_mutex_lock(&s->dev.lock);
    if (!(s->regs.mcr & MCR_LOOP))
        rx_push(s, RX_BREAK);
    update_line(s);
    pthread_mutex_unlock(&s->dev.lock);
}

/* -- transmitter -- */

/* Give the chardev what waits. */
static void tx_push(struct serial *s)
{
    struct serial_regs *regs = &s->regs;
    size_t n;

    if (!regs->tx_len)
        return;
    n = chardev_write(s->chardev, regs->tx, regs->tx_len);
    regs->tx_len = (uint8_t)(regs->tx_len - n);
    memmove(regs->tx, regs->tx + n, regs->tx_len);
    if (!regs->tx_len)
        regs->thre_pending = true;
}

/* The chardev has room again. Main thread. */
static void on_writable(void *opaque)
{
    struct serial *s = opaque;

    pthread_mutex_lock(&s->dev.lock);
    tx_push(s);
    update_line(s);
    pthread_mutex_unlock(&s->dev.lock);
}

static void write_tx(struct serial *s, uint8_t v)
{
    struct serial_regs *regs = &s->regs;

    /* A write ends the interrupt, the byte being out starts the next: a handler that never reads IIR needs the edge. */
    regs->thre_pending = false;
    update_line(s);
    if (regs->mcr & MCR_LOOP) {
        rx_push(s, v);
        regs->thre_pending = !regs->tx_len;
    } else if (!regs->tx_len && chardev_write(s->chardev, &v, 1) == 1) {
        regs->thre_pending = true;
    } else if (regs->tx_len < fifo_size(regs)) {
        regs->tx[regs->tx_len++] = v;
    } else {
        /* The guest did not look at THRE; the newest byte is lost, as on the chip. */
        regs->tx[regs->tx_len - 1] = v;
    }
    update_line(s);
}

/* -- modem lines -- */

/* The lines as MSR shows them: always connected, or in loopback what MCR drives. */
static uint8_t modem_lines(uint8_t mcr)
{
    if (!(mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (uint8_t)((mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) | (mcr & MCR_OUT1 ? MSR_RI : 0) |
                     (mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static void write_mcr(struct serial *s, uint8_t v)
{
    uint8_t before = modem_lines(s->regs.mcr), after, changed;

    s->regs.mcr = v & MCR_MASK;
    after = modem_lines(s->regs.mcr);
    changed = before ^ after;
    s->regs.msr_deltas |= (uint8_t)((changed & MSR_CTS ? MSR_DCTS : 0) | (changed & MSR_DSR ? MSR_DDSR : 0) |
                                    (before & ~after & MSR_RI ? MSR_TERI : 0) | (changed & MSR_DCD ? MSR_DDCD : 0));
    if (!(s->regs.mcr & MCR_LOOP) && s->regs.rx_len < fifo_size(&s->regs))
        rx_room(s);
    update_line(s);
}

/* -- the other registers -- */

static void write_ier(struct serial *s, uint8_t v)
{
    uint8_t on = v & (uint8_t)~s->regs.ier;

    s->regs.ier = v & IER_MASK;
    /* Enabling it while the transmitter is empty is an interrupt in itself; Linux tests for that. */
    if ((on & IER_THRE) && !s->regs.tx_len)
        s->regs.thre_pending = true;
    update_line(s);
}

static uint8_t read_iir(struct serial *s)
{
    uint8_t id = interrupt_id(&s->regs);

    if (id == IIR_THRE) {
        s->regs.thre_pending = false;
        update_line(s);
    }
    return id | (s->regs.fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static void write_fcr(struct serial *s, uint8_t v)
{
    struct serial_regs *regs = &s->regs;
    bool toggled = (v ^ regs->fcr) & FCR_ENABLE;

    /* Without the enable bit the others are not programmed. */
    regs->fcr = v & FCR_ENABLE ? v & FCR_KEPT : 0;
    if (toggled || ((v & FCR_ENABLE) && (v & FCR_CLEAR_TX))) {
        regs->thre_pending |= regs->tx_len > 0;
        regs->tx_len = 0;
    }
    if (toggled || ((v & FCR_ENABLE) && (v & FCR_CLEAR_RX)))
        clear_rx(s);
    update_line(s);
}

static uint8_t read_lsr(struct serial *s)
{
    struct serial_regs *regs = &s->regs;
    uint8_t v = 0;

    if (!regs->tx_len)
        v |= LSR_THRE | LSR_TEMT;
    if (regs->overrun)
        v |= LSR_OVERRUN;
    if (regs->rx_len)
        v |= LSR_DATA;
    if (regs->rx_len && (regs->rx[0] & RX_BREAK))
        v |= LSR_BREAK;
    for (unsigned int i = 0; i < regs->rx_len; i++)
        if ((regs->fcr & FCR_ENABLE) && (regs->rx[i] & RX_BREAK))
            v |= LSR_FIFO_ERROR;
    if (v & (LSR_OVERRUN | LSR_BREAK)) {
        regs->overrun = false;
        regs->rx[0] &= (uint16_t)~RX_BREAK;
        update_line(s);
    }
    return v;
}

static uint8_t read_msr(struct serial *s)
{
    uint8_t v = modem_lines(s->regs.mcr) | s->regs.msr_deltas;

    s->regs.msr_deltas = 0;
    update_line(s);
    return v;
}

static uint8_t serial_read_byte(void *opaque, unsigned int reg)
{
    struct serial *s = opaque;
    bool dlab = s->regs.lcr & LCR_DLAB;

    switch (reg) {
    case REG_DATA:
        return dlab ? (uint8_t)s->regs.divisor : read_rx(s);
    case REG_IER:
        return dlab ? (uint8_t)(s->regs.divisor >> 8) : s->regs.ier;
    case REG_IIR:
        return read_iir(s);
    case REG_LCR:
        return s->regs.lcr;
    case REG_MCR:
        return s->regs.mcr;
    case REG_LSR:
        return read_lsr(s);
    case REG_MSR:
        return read_msr(s);
    default:
        return s->regs.scr;
    }
}

static void serial_write_byte(void *opaque, unsigned int reg, uint8_t v)
{
    struct serial *s = opaque;
    bool dlab = s->regs.lcr & LCR_DLAB;

    switch (reg) {
    case REG_DATA:
        if (dlab)
            s->regs.divisor = (uint16_t)((s->regs.divisor & 0xff00) | v);
        else
            write_tx(s, v);
        break;
    case REG_IER:
        if (dlab)
            s->regs.divisor = (uint16_t)((s->regs.divisor & 0xff) | v << 8);
        else
            write_ier(s, v);
        break;
    case REG_IIR:
        write_fcr(s, v);
        break;
    case REG_LCR:
        s->regs.lcr = v;
        break;
    case REG_MCR:
        write_mcr(s, v);
        break;
    case REG_SCR:
        s->regs.scr = v;
        break;
    default:
        /* LSR and MSR are for factory tests. */
        break;
    }
}

static uint64_t serial_read(void *opaque, uint64_t offset, unsigned int size)
{
    return device_read_bytes(opaque, offset, size, serial_read_byte);
}

static void serial_write(void *opaque, uint64_t offset, unsigned int size, uint64_t value)
{
    device_write_bytes(opaque, offset, size, value, serial_write_byte);
}

static const struct bus_ops serial_bus_ops = {.read = serial_read, .write = serial_write};

/* -- the device -- */

static void serial_reset(struct device *dev)
{
    struct serial *s = container_of(dev, struct serial, dev);

    /* A divisor of 0 makes early boot code that reads the baud rate back divide by zero. */
    s->regs = (struct serial_regs){.divisor = DIVISOR_9600};
    rx_room(s);
    set_line(s);
}

static void serial_save(struct device *dev, struct state_writer *w)
{
    struct serial *s = container_of(dev, struct serial, dev);
    struct serial_regs regs = s->regs;

    /* What has left the FIFOs is nobody's business. */
    memset(regs.rx + regs.rx_len, 0, (FIFO_SIZE - regs.rx_len) * sizeof(regs.rx[0]));
    memset(regs.tx + regs.tx_len, 0, FIFO_SIZE - regs.tx_len);
    state_put_fields(w, "", regs_fields, ARRAY_SIZE(regs_fields), &regs);
}

static int check_mask(struct state_reader *r, const struct state_section *s, const char *name, uint8_t v, uint8_t mask)
{
    return v & ~mask ? state_bad(r, s, "field %s: 0x%x has bits beyond 0x%x", name, v, mask) : 0;
}

static int check_regs(struct state_reader *r, const struct state_section *sec, const struct serial_regs *regs)
{
    int err = check_mask(r, sec, "ier", regs->ier, IER_MASK);

    if (err == 0)
        err = check_mask(r, sec, "fcr", regs->fcr, regs->fcr & FCR_ENABLE ? FCR_KEPT : 0);
    if (err == 0)
        err = check_mask(r, sec, "mcr", regs->mcr, MCR_MASK);
    if (err == 0)
        err = check_mask(r, sec, "msr_deltas", regs->msr_deltas, MSR_DELTAS);
    if (err < 0)
        return err;
    if (regs->rx_len > fifo_size(regs))
        return state_bad(r, sec, "field rx_len: %u exceeds %u", regs->rx_len, fifo_size(regs));
    if (regs->tx_len > fifo_size(regs))
        return state_bad(r, sec, "field tx_len: %u exceeds %u", regs->tx_len, fifo_size(regs));
    if (regs->tx_len && regs->thre_pending)
        return state_bad(r, sec, "field thre_pending: the transmitter holds %u bytes", regs->tx_len);
    for (unsigned int i = 0; i < regs->rx_len; i++)
        if (regs->rx[i] & ~RX_MASK)
            return state_bad(r, sec, "field rx: 0x%x has bits beyond 0x%x", regs->rx[i], RX_MASK);
    return 0;
}

static int serial_restore(struct device *dev, struct state_reader *r, const struct state_section *sec)
{
    struct serial *s = container_of(dev, struct serial, dev);
    struct serial_regs regs;
    int err = state_get_fields(r, sec, "", regs_fields, ARRAY_SIZE(regs_fields), &regs);

    if (err == 0)
        err = state_check_all_read(r, sec);
    if (err == 0)
        err = check_regs(r, sec, &regs);
    if (err < 0)
        return err;
    s->regs = regs;
    /* Also makes the chardev tell when there is room, should it have none now. */
    tx_push(s);
    rx_room(s);
    set_line(s);
    return 0;
}

static void serial_destroy(struct device *dev)
{
    struct serial *s = container_of(dev, struct serial, dev);

    chardev_set_handler(s->chardev, NULL);
    bus_remove(s->env.bus, s);
    free(s);
}

static const struct device_ops serial_ops = {
    .name = "serial",
    .state_version = 1,
    .reset = serial_reset,
    .save = serial_save,
    .restore = serial_restore,
    .destroy = serial_destroy,
};

int serial_create(const struct device_env *env, struct chardev *chardev, struct device **ret)
{
    struct serial *s = calloc(1, sizeof(*s));
    struct chardev_handler handler = {
        .on_input = on_input, .on_writable = on_writable, .on_break = on_break, .opaque = s};
    int err;

    if (!s)
        return -ENOMEM;
    s->env = *env;
    s->chardev = chardev;
    s->regs.divisor = DIVISOR_9600;
    device_init(&s->dev, &serial_ops, 0);
    err = bus_add(env->bus, BUS_PIO, SERIAL_PORT, SERIAL_PORTS, "serial", &serial_bus_ops, s, &s->dev.lock);
    if (err < 0) {
        pthread_mutex_destroy(&s->dev.lock);
        free(s);
        return err;
    }
    chardev_set_handler(chardev, &handler);
    *ret = &s->dev;
    return 0;
}
